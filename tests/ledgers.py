"""Empty ledgers without the time that their migrations take: each is a copy of one that was migrated once."""

import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import make_url

from omni_rl.ledger.ledger import Ledger
from tests.postgres import Postgres

SQLITE = "sqlite:///"


def open_ledger(url: str) -> Ledger:
    """Open a ledger, after putting an empty one where the URL names a file that is not there."""
    path = Path(url.removeprefix(SQLITE))
    if url.startswith(SQLITE) and not path.exists():
        path.touch(0o600)
        path.write_bytes(_empty_file())
    return Ledger.open(url)


def new_ledger(server: Postgres) -> str:
    """The URL of an empty ledger in a database of its own."""
    return server.new_database(_empty_database(server))


@cache
def _empty_file() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "ledger.db")
        Ledger.open(f"{SQLITE}{path}").close()
        return path.read_bytes()


@cache
def _empty_database(server: Postgres) -> str:
    url = server.new_database()
    Ledger.open(url).close()
    name = make_url(url).database
    assert name is not None
    return name
