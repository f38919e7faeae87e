"""A coordinator behind a real socket, in a thread of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.server import make_server
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings

from omni_rl.ledger.sync_journal import LedgerJournal
from tests.ledgers import open_ledger
from tests.services.fake_bridge import FakeBridge


@contextmanager
def live(directory: Path, bridge: FakeBridge | None = None, **settings: Any) -> Iterator[str]:
    """The address of a coordinator whose ledger is in `directory`."""
    chosen = {
        "ledger": f"sqlite:///{directory / 'ledger.db'}",
        "media": MediaSettings(directory=directory / "media"),
        "port": 0,
        **settings,
    }
    ledger = open_ledger(chosen["ledger"])
    cluster = bridge or FakeBridge()
    cluster.journal = LedgerJournal(ledger, "digits", force=True)
    server = make_server(create_app(CoordinatorSettings(**chosen), ledger=ledger, bridge=cluster))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield server.address()
    finally:
        server.should_exit = True
        thread.join(30)
        cluster.journal.close()
        assert not thread.is_alive(), "the server did not end"
