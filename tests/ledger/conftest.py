"""Every test of the ledger runs on SQLite and on PostgreSQL."""

from collections.abc import Iterator

import pytest

from omni_rl.ledger.ledger import Ledger


@pytest.fixture
def url(ledger_url: str) -> str:
    return ledger_url


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger.open(url) as opened:
        yield opened
