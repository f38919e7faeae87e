"""Every test of the ledger runs on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal
from tests.ledgers import new_ledger, open_ledger
from tests.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty ledger, or of a file that is not there yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = new_ledger(server)
    yield url
    server.drop_database(url)


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with open_ledger(url) as opened:
        yield opened


def committed_sync(journal: LedgerJournal, name: str, slab: str, version: str, key: str | None = None) -> int:
    epoch = journal.next_epoch(None)
    journal.begin(name, key, epoch, slab, "recompute")
    journal.prepared(name, epoch, version)
    journal.decide(name, epoch, "commit")
    return epoch
