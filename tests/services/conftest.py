"""A coordinator on a real ledger, with a hand-written cluster."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.auth import new_token
from omni_rl_services.coordinator.core import Coordinator
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings, TokenEntry

from omni_rl.api.state import Scope
from omni_rl.ledger.sync_journal import LedgerJournal
from tests.ledgers import open_ledger
from tests.services.fake_bridge import FakeBridge


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Served:
    """An app that runs, a client without token, its coordinator and its cluster."""

    app: FastAPI
    http: httpx.AsyncClient
    coordinator: Coordinator
    bridge: FakeBridge


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(**settings) as served`; the ledger is in `tmp_path`, so a second one takes up the first's."""

    @asynccontextmanager
    async def serving(bridge: FakeBridge | None = None, **settings: Any) -> AsyncIterator[Served]:
        chosen = {
            "ledger": f"sqlite:///{tmp_path / 'ledger.db'}",
            "media": MediaSettings(directory=tmp_path / "media"),
            **settings,
        }
        cluster = bridge or FakeBridge()
        ledger = open_ledger(chosen["ledger"])
        cluster.journal = LedgerJournal(ledger, cluster.run, force=True)
        app = create_app(CoordinatorSettings(**chosen), ledger=ledger, bridge=cluster)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
        ):
            yield Served(app, http, app.state.coordinator, cluster)
        cluster.journal.close()

    return serving


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    """One without tokens."""
    async with serve() as running:
        yield running


def tokens() -> tuple[dict[str, str], tuple[TokenEntry, ...]]:
    """A token of each scope, and how they are kept."""
    made = {scope: new_token() for scope in Scope}
    entries = tuple(TokenEntry(name=f"{scope}-er", scope=scope, sha256=kept) for scope, (_, kept) in made.items())
    return {str(scope): token for scope, (token, _) in made.items()}, entries


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
