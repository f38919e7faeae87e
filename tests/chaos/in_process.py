"""A run in one process, for tests that need no killing: the real service and slabs, fake engines, replicas by call."""

import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_rl.errors import ReplicaDeadError, ReplicaSilentError
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.rollout.service import ReplicaService
from omni_rl.sync.replica import Command, Deadline, ReplicaStatus
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slabs import SlabPair
from omni_rl.sync.states import SyncEvent
from omni_rl.sync.transport import WeightTransport
from omni_rl.sync.weight_sync import WeightSync
from tests.chaos.fake_engine import PLACES, RUN, FakeEngine, NumberSource, Token

LOOK_SECONDS = 0.05
"""Seconds between two looks at whether a replica that was asked still lives."""


@dataclass
class LocalReplica:
    """A replica in this process. `kill` ends it like a process that dies; `barren`: no successor can be started."""

    name: str
    barren: bool = False
    heard: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens: list[Token] = []
        self.replace()

    def call(self, command: Command, deadline: Deadline) -> Any:
        self.heard.append(command)
        service = self._alive()
        return self._wait(service, service.obey(command), deadline)

    def status(self, deadline: Deadline) -> ReplicaStatus:
        return self._alive().status

    def replace(self) -> None:
        if self.barren:
            raise ReplicaDeadError(f"{self.name}: there is no room for another")
        self.service: ReplicaService[FakeEngine] = ReplicaService(self.name, FakeEngine, closed=True)
        self.dead = False

    def kill(self) -> None:
        self.dead = True
        self.service.close()

    @property
    def engine(self) -> FakeEngine:
        return self.service.loop.ready.result()

    def sample(self, *counts: int) -> "Future[list[list[Token]]]":
        """Requests of so many tokens; what they give is kept in `tokens` too."""
        answers = self.service.loop.requests(lambda engine: engine.submit(counts))
        answers.add_done_callback(self._keep)
        return answers

    def _keep(self, answers: "Future[list[list[Token]]]") -> None:
        if answers.exception() is None:
            self.tokens += [token for tokens in answers.result() for token in tokens]

    def _alive(self) -> ReplicaService[FakeEngine]:
        if self.dead:
            raise ReplicaDeadError(f"{self.name}: its process is gone")
        return self.service

    def _wait(self, service: ReplicaService[FakeEngine], answer: "Future[Any]", deadline: Deadline) -> Any:
        """Return the answer; whoever waits for a process that dies hears of that, as Ray tells it."""
        end = time.monotonic() + deadline.seconds
        while True:
            try:
                return answer.result(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))
            except FutureTimeoutError:
                if self.dead or self.service is not service:
                    raise ReplicaDeadError(f"{self.name}: its process ended during {deadline.name}") from None
                if time.monotonic() >= end:
                    raise ReplicaSilentError(f"{self.name}: no answer within its deadline {deadline.name!r}") from None


class LocalRun:
    """Two replicas, slabs under `directory`, and a `WeightSync` of them, opened on weights number 0.

    The journal is `directory.name`'s in `ledger`, or RUN's in a ledger under `directory`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        opened: bool = True,
        transport: WeightTransport | None = None,
        ledger: str | None = None,
    ) -> None:
        self.owner = SlabOwner(RUN, PLACES, directory)
        self.ledger = ledger or directory / "ledger.db"
        self._open = ExitStack()
        self.journal = self._open.enter_context(opened_journal(self.ledger, directory.name if ledger else RUN))
        self.slabs = SlabPair(self.owner.directory, transport)
        self.replicas = {name: LocalReplica(name) for name in ("r0", "r1")}
        self.events: list[SyncEvent] = []
        self.sync = WeightSync(self.journal, self.slabs, list(self.replicas.values()), observe=self.events.append)
        if opened:
            self.sync.open(NumberSource(0))

    def standings(self) -> dict[str, tuple[str, str | None]]:
        statuses = {name: replica.service.status for name, replica in self.replicas.items()}
        return {name: (status.standing, status.holds) for name, status in statuses.items()}

    def all_serve(self, version: str) -> bool:
        return set(self.standings().values()) == {("serving", version)}

    def close(self, *, remove: bool = True) -> None:
        self.sync.close()
        for replica in self.replicas.values():
            if not replica.dead:
                replica.kill()
        self.slabs.close()
        self._open.close()
        self.owner.close(remove=remove)


@dataclass
class SlowSource:
    """Weights number `number`, which wait in the middle until `go` is set."""

    number: int
    started: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def fill(self, slab: Any) -> Any:
        self.started.set()
        assert self.go.wait(10)
        return NumberSource(self.number).fill(slab)


class BrokenSource:
    """A source that dies before it has written anything."""

    def fill(self, slab: Any) -> Any:
        raise ReplicaDeadError("the trainer is gone")
