"""A run without slabs, engines or a database: whatever a coordinator asks of them is answered by hand, and kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from omni_rl.errors import FencedError, OmniRLError
from omni_rl.sync.journal import SyncRecord
from omni_rl.sync.replica import (
    Apply,
    Command,
    Deadline,
    InFlight,
    Pause,
    Proof,
    Quarantine,
    ReplicaStatus,
    Resume,
    Resumed,
    ScoreProbe,
    SlabRef,
    Standing,
    Verify,
)
from omni_rl.sync.replica_group import Deadlines
from omni_rl.sync.states import Decision, SyncEvent
from omni_rl.sync.transaction import Filled
from omni_rl.sync.weight_sync import WeightSync

PATHS = ("slab-0", "slab-1")
OLD, NEW = "run/1/0/a", "run/1/1/b"
"""The versions of a run's first weights, and of those that the first sync brings."""
DEADLINES = Deadlines(answer=1.0, drain=20.0, write=3.0, prove=4.0, score=5.0, decide=1.0)


@dataclass
class ReplicaByHand:
    """`fails` has the errors that commands of a type end in, each once, and `proofs` what `Verify` finds."""

    name: str
    standing: Standing = "closed"
    holds: str | None = None
    epoch: int = 0
    stall: float = 0.25
    successor: OmniRLError | None = None
    fails: dict[type[Command], list[BaseException]] = field(default_factory=dict)
    proofs: list[tuple[str, ...]] = field(default_factory=list)
    heard: list[Command] = field(default_factory=list)
    given: dict[str, float] = field(default_factory=dict)
    ends: int = 0

    def call(self, command: Command, deadline: Deadline) -> Any:
        self.heard.append(command)
        self.given[deadline.name] = deadline.seconds
        if self.fails.get(type(command)):
            raise self.fails[type(command)].pop(0)
        if command.epoch < self.epoch:
            raise FencedError(f"{self.name} has heard epoch {self.epoch}")
        self.epoch = command.epoch
        match command:
            case Pause():
                self.standing = "paused"
            case Apply():
                self.standing, self.holds = "unproven", None
            case Verify():
                wrong = self.proofs.pop(0) if self.proofs else ()
                if not wrong:
                    self.standing, self.holds = "proven", command.slab.version
                return Proof(command.slab.version, 2, 40, 9 if wrong else 10, 10, wrong)
            case Resume():
                self.standing = "serving"
                return Resumed(command.version, self.stall)
            case Quarantine():
                self.standing = "quarantined"
            case ScoreProbe():
                return [self.name, command.probe]
        return self.status(deadline)

    def status(self, deadline: Deadline) -> ReplicaStatus:
        if self.fails.get(Command):
            raise self.fails[Command].pop(0)
        return ReplicaStatus(self.name, 1, self.epoch, self.standing, self.holds, "as a test has it")

    def replace(self) -> None:
        self.ends += 1
        if self.successor is not None:
            raise self.successor
        self.standing, self.holds = "closed", None

    def told(self) -> list[str]:
        """The names of the commands since the last call."""
        heard, self.heard = self.heard, []
        return [type(command).__name__ for command in heard]


@dataclass
class JournalByHand:
    """`fails` has how often a method fails, and whether it has done its work by then."""

    epoch: int = 0
    syncs: dict[str, SyncRecord] = field(default_factory=dict)
    fails: dict[str, list[tuple[OmniRLError, bool]]] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)

    def _change(self, method: str, sync: str, **changes: Any) -> None:
        self.tried[method] = self.tried.get(method, 0) + 1
        error, done = self.fails[method].pop(0) if self.fails.get(method) else (None, True)
        if done:
            self.syncs[sync] = replace(self.syncs[sync], **changes)
        if error is not None:
            raise error

    def next_epoch(self, held: int | None) -> int:
        if held is not None and held < self.epoch:
            raise FencedError("a newer one took over")
        self.epoch += 1
        return self.epoch

    def begin(self, sync: str, key: str | None, epoch: int, slab: str, mode: InFlight) -> None:
        if self.fails.get("begin"):
            raise self.fails["begin"].pop(0)[0]
        ref = SlabRef(slab, "")
        self.syncs[sync] = SyncRecord(sync, key, epoch, ref, self.committed(), mode, 0.0, None, None, None)

    def prepared(self, sync: str, epoch: int, version: str) -> None:
        self._change("prepared", sync, slab=SlabRef(self.syncs[sync].slab.path, version))

    def decide(self, sync: str, epoch: int, decision: Decision) -> Decision:
        self._change("decide", sync, decision=self.syncs[sync].decision or decision)
        stands = self.syncs[sync].decision
        assert stands is not None
        return stands

    def finish(self, sync: str, epoch: int, result: Mapping[str, Any]) -> None:
        self._change("finish", sync, finished=1.0, result=result)

    def unfinished(self) -> SyncRecord | None:
        return next((record for record in self.syncs.values() if record.finished is None), None)

    def by_key(self, key: str) -> SyncRecord | None:
        return next((record for record in self.syncs.values() if record.key == key), None)

    def record(self, sync: str) -> SyncRecord | None:
        return self.syncs.get(sync)

    def records(self, limit: int) -> list[SyncRecord]:
        return list(reversed(self.syncs.values()))[:limit]

    def committed(self) -> SlabRef | None:
        return next((one.slab for one in reversed(self.syncs.values()) if one.decision == "commit"), None)


@dataclass
class SlabsByHand:
    """A source is the version that its weights have, or what it raises."""

    pushes: bool = False
    push_fails: OmniRLError | None = None
    pushed: int = 0
    allowed: list[bool] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    replica: ReplicaByHand | None = None

    def idle(self, active: SlabRef | None) -> str:
        return PATHS[1] if active is not None and active.path == PATHS[0] else PATHS[0]

    def fill(self, path: str, source: Any, *, allow_nonfinite: bool = False) -> Filled:
        self.allowed.append(allow_nonfinite)
        if isinstance(source, BaseException):
            raise source
        self.held[path] = source
        return Filled(SlabRef(path, source), 2, 40, "trainer", ("w: 1 NaN of 3 elements",) if allow_nonfinite else ())

    def push(self) -> None:
        self.pushed += 1
        if self.replica is not None:
            self.heard_before_push = self.replica.told()
        if self.push_fails is not None:
            raise self.push_fails

    def holds(self, slab: SlabRef) -> bool:
        return self.held.get(slab.path) == slab.version


class RunByHand:
    """Two replicas, opened on the weights run/1/0/a unless `opened` is False. `watch` sees each event as it happens."""

    def __init__(self, *, opened: bool = True, deadlines: Deadlines = DEADLINES) -> None:
        self.deadlines = deadlines
        self.journal, self.slabs = JournalByHand(), SlabsByHand()
        self.one, self.other = ReplicaByHand("r0"), ReplicaByHand("r1")
        self.events: list[SyncEvent] = []
        self.watch: Callable[[SyncEvent], None] = lambda event: None
        self.sync = self.coordinator()
        if opened:
            self.sync.open("run/1/0/a")
            self.forget()

    def coordinator(self) -> WeightSync:
        replicas = [self.one, self.other]
        return WeightSync(self.journal, self.slabs, replicas, deadlines=self.deadlines, observe=self._observe)

    def _observe(self, event: SyncEvent) -> None:
        self.events.append(event)
        self.watch(event)

    def forget(self) -> None:
        """What was heard until now."""
        for replica in (self.one, self.other):
            replica.heard, replica.given = [], {}
        self.events.clear()

    def serves(self, version: str) -> bool:
        return all((one.standing, one.holds) == ("serving", version) for one in (self.one, self.other))
