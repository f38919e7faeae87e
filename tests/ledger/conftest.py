"""Every test of the ledger runs on SQLite and on PostgreSQL."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl.ledger.ledger import Ledger

from .postgres import Postgres, find_binaries


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests."""
    binaries = find_binaries()
    if binaries is None:
        assert "CI" not in os.environ, "PostgreSQL is not installed; in CI nothing is left out: apt install postgresql"
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    server = Postgres(binaries)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger.open(url) as opened:
        yield opened
