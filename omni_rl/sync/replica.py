"""Defines the commands that a coordinator gives to one rollout replica, and the answers; both ends of any transport use
these.

A command carries the fencing epoch of the coordinator that gave it. A replica refuses every command that is older than
the newest epoch it has seen, so that a coordinator that was replaced, or slept, changes nothing any more.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

InFlight = Literal["recompute", "drain", "keep"]
"""What becomes of requests under way: their state is built anew, they are finished first, or they keep their state."""

Standing = Literal["closed", "serving", "paused", "unproven", "proven", "quarantined"]
"""Where a replica stands. closed: just started, nothing proven. paused: as it was, between two steps. unproven: weights
were written, or began to be. proven: every byte is that of `holds`; only Resume opens the gate. quarantined: it stays
closed until it is replaced."""


@dataclass(frozen=True)
class SlabRef:
    """A sealed set of weights on the replica's host: the slab's file, and the version its manifest must have."""

    path: str
    version: str


@dataclass(frozen=True)
class Command:
    """A command to a replica. `sync` names the transaction in errors; it plays no part in what is allowed."""

    epoch: int
    sync: str


@dataclass(frozen=True)
class Fence(Command):
    """Carries nothing but the epoch: the replica refuses earlier coordinators from here on."""


@dataclass(frozen=True)
class Pause(Command):
    """Stop between two steps and close the gate; `drain_seconds` bounds how long `drain` may take."""

    mode: InFlight = "recompute"
    drain_seconds: float = 0.0


@dataclass(frozen=True)
class Apply(Command):
    """Drop what was computed with other weights, and write the slab's; `pushed`: the transport writes them next
    instead."""

    slab: SlabRef
    pushed: bool = False


@dataclass(frozen=True)
class Verify(Command):
    """Read back every byte of the engine against the slab, and the slab against its checksums."""

    slab: SlabRef


@dataclass(frozen=True)
class ScoreProbe(Command):
    """Score the canonical probe with the proven weights, gate closed."""

    probe: Any


@dataclass(frozen=True)
class Resume(Command):
    """Open the gate; refused unless the replica holds exactly `version`, proven or untouched."""

    version: str


@dataclass(frozen=True)
class Quarantine(Command):
    reason: str


@dataclass(frozen=True)
class HoldGate(Command):
    """Let nothing be generated until Release. Syncs go on meanwhile, and their Resume opens no gate."""

    reason: str


@dataclass(frozen=True)
class Release(Command):
    """End the hold. A replica that is not proven stays closed."""


@dataclass(frozen=True)
class ReplicaStatus:
    """What a replica reports of itself. `holds` is the version whose weights it certainly has, None while unproven;
    `held` is why it must generate nothing (Hold), None if it may."""

    name: str
    pid: int
    epoch: int
    standing: Standing
    holds: str | None
    reason: str = ""
    held: str | None = None


@dataclass(frozen=True)
class Proof:
    """What `Verify` found. No `mismatches` (one sentence each, naming the tensor): the engine holds exactly the slab's
    weights."""

    version: str
    tensors: int
    bytes: int
    elements_proven: int
    elements: int
    mismatches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resumed:
    """The answer to Resume. `stall` is the seconds from the last step before the pause to the opened gate, by the
    replica's own clock."""

    version: str
    stall: float


class Deadline(NamedTuple):
    """How long a command may take, and the name that errors give to this deadline."""

    name: str
    seconds: float


class Replica(Protocol):
    """The coordinator's handle on one replica, over whatever carries its commands.

    `call` returns the answer: `ReplicaStatus` to Fence, Pause, Apply, Quarantine, Hold and Release, `Proof` to Verify,
    `Resumed` to Resume, the engine's scores to Score. It raises `ReplicaDeadError` if the replica's process is gone,
    `ReplicaStoppedError` if it is stopped, `ReplicaSilentError` if it runs and the deadline passed, `FencedError` if a
    newer coordinator is at work, or what the engine raised.
    """

    @property
    def name(self) -> str: ...
    def call(self, command: Command, deadline: Deadline) -> Any: ...
    def status(self, deadline: Deadline) -> ReplicaStatus: ...
    def replace(self) -> None:
        """End the process for certain, whatever its state, and start another with a closed gate."""
