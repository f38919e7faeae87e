"""Runs a coordinator in this process for `omni-rl demo --serve`: it takes the demo's steps and stays up with them."""

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.server import bind, make_server
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings

from omni_rl.api.runs import RunBody
from omni_rl.config import DemoSettings
from omni_rl.errors import ServiceError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal
from omni_rl.policies.patient_client import PatientClient


@dataclass(frozen=True)
class ServedDemo:
    """The address of the dashboard, the run's name, a client that posts its steps, and the journal of its syncs."""

    address: str
    run: str
    client: PatientClient
    journal: LedgerJournal


@contextlib.contextmanager
def serving(settings: DemoSettings) -> Iterator[ServedDemo]:
    """Run a coordinator on `settings.port` while the block runs, and create a run with a new name in it. Its ledger and
    media are in `settings.out`.

    Raises:
        ServiceError: the port is taken, or the coordinator did not start.
    """
    listening = bind(CoordinatorSettings().host, settings.port)
    settings.out.mkdir(parents=True, exist_ok=True)
    chosen = CoordinatorSettings(
        port=settings.port,
        ledger=f"sqlite:///{settings.out / 'ledger.db'}",
        media=MediaSettings(directory=settings.out / "media"),
    )
    run = f"demo-{uuid.uuid4().hex[:8]}"
    ledger = Ledger.open(chosen.ledger)
    server = make_server(create_app(chosen, ledger=ledger))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="coordinator")
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise ServiceError("the coordinator did not start; the lines above say why")
            time.sleep(0.01)
        with PatientClient(server.address()) as client:
            client.create_run(RunBody(run=run, model=settings.model.name, dtype=settings.dtype))
            with contextlib.closing(LedgerJournal(ledger, run)) as journal:
                yield ServedDemo(server.address(), run, client, journal)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
