"""One run of fake engines in real processes, and what must be true of it whatever was done to it."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.processes import life
from omni_rl.sync.ownership import SHARED_MEMORY
from omni_rl.sync.replica import Deadline, ReplicaStatus
from omni_rl.sync.version import WeightVersion
from tests import nursery
from tests.chaos import parties
from tests.chaos.fake_engine import Faults, Token
from tests.chaos.parties import PARTIES, REPLICAS, Home, Job
from tests.postgres import Postgres

END_SECONDS = 60.0


class Scene:
    """Slab owner, trainer and two replicas that run; coordinators come and go."""

    def __init__(self, home: Home) -> None:
        self.home = home
        home.start("owner", parties.owner)
        home.start("trainer", parties.trainer)
        for name in REPLICAS:
            home.start(name, parties.replica, True)
        for party in ("owner", "trainer", *REPLICAS):
            parties.wait_for(home, party)

    def coordinate(self, job: Job, party: str = "coordinator") -> dict[str, Any] | None:
        """Run a coordinator to its end; what it left, or None if it was killed."""
        pid = self.begin(job, party)
        deadline = time.monotonic() + END_SECONDS
        while life(pid) != "gone":
            assert time.monotonic() < deadline, f"the coordinator did not end:\n{self.log(party)}"
            time.sleep(0.01)
        assert "Traceback" not in self.log(party), self.log(party)
        return self.outcome(party)

    def begin(self, job: Job, party: str = "coordinator") -> int:
        (self.home.path / f"{party}.json").unlink(missing_ok=True)
        return self.home.start(party, parties.coordinator, job)

    def outcome(self, party: str = "coordinator") -> dict[str, Any] | None:
        path = self.home.path / f"{party}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def log(self, party: str) -> str:
        return (self.home.path / f"{party}.log").read_text()

    def fault(self, party: str, faults: Faults) -> None:
        parties.ask(self.home, party, ("fault", faults), Deadline("fault", 5.0))

    def end_faults(self) -> None:
        """What comes next is quick again."""
        for name in REPLICAS:
            if life(self.home.pid(name)) != "gone":
                self.fault(name, Faults())

    def statuses(self) -> dict[str, ReplicaStatus]:
        return {name: self.status(name) for name in REPLICAS}

    def status(self, name: str) -> ReplicaStatus:
        status: ReplicaStatus = parties.ask(self.home, name, ("status",), Deadline("status", 5.0))
        return status

    def restart_the_dead(self) -> None:
        """Trainer and slab owner have owners of their own, who start them again; replicas are the coordinator's."""
        for party, run in (("trainer", parties.trainer), ("owner", parties.owner)):
            if life(self.home.pid(party)) == "gone":
                self.home.start(party, run)
                parties.wait_for(self.home, party)

    def tokens(self, party: str) -> list[Token]:
        lines = (self.home.path / f"{party}.tokens").read_text().split("\n")[:-1]
        return [Token(version, held) for line in lines for version, held in json.loads(line)]

    def committed(self) -> str:
        with opened_journal(self.home.ledger, self.home.run, force=True) as journal:
            committed = journal.committed()
        assert committed is not None
        return committed.version

    def expect_all_serve(self, number: int) -> None:
        """Every replica serves version `number`, the journal agrees, and no token ever carried a wrong version."""
        committed = self.committed()
        assert WeightVersion.parse(committed).number == number, self.log("coordinator")
        for name, status in self.statuses().items():
            assert (status.standing, status.holds) == ("serving", committed), f"{name}: {status}"
        before = {name: len(self.tokens(name)) for name in REPLICAS}
        deadline = time.monotonic() + 5
        while any(len(self.tokens(name)) < before[name] + 60 for name in REPLICAS):
            assert time.monotonic() < deadline, "a replica samples nothing"
            time.sleep(0.01)
        for name in REPLICAS:
            tokens = self.tokens(name)
            assert [token for token in tokens if not token.is_right()] == []
            assert tokens[-1].version == committed

    def close(self) -> None:
        for file in self.home.path.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[str]:
    with nursery.started("tests.chaos.parties:rehearse") as address:
        yield address


@pytest.fixture(scope="session")
def shared_database(postgres: Postgres) -> str:
    """One for all tests, each of which has a run of its own in it: a database takes longer to make than a test runs."""
    return postgres.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where runs have their journals; in memory, because a killed process loses nothing that the system holds."""
    if request.param == "postgresql":
        yield request.getfixturevalue("shared_database")
        return
    with tempfile.TemporaryDirectory(prefix="omni-chaos-", dir=SHARED_MEMORY) as directory:
        yield f"sqlite:///{directory}/ledger.db"


@pytest.fixture
def scene(fork_server: str, ledger_url: str) -> Iterator[Scene]:
    """In a directory with a short name: a socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="omni-") as directory:
        started = Scene(Home(Path(directory), fork_server, ledger_url, run=Path(directory).name))
        yield started
        started.close()


__all__ = ["PARTIES", "Callable", "Scene"]
