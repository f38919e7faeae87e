"""Defines what must outlive a coordinator: the fencing epoch, the sync under way, and the row that decides it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from omni_rl.sync.replica import InFlight, SlabRef
from omni_rl.sync.states import Decision


@dataclass(frozen=True)
class SyncRecord:
    """One sync as the journal has it.

    `slab` is where the new weights go, with version "" until they are there. `decision` None: nothing is decided.
    `finished` (Unix seconds) None: not every replica is accounted for. `result` is what the caller received, or would
    have received.
    """

    sync: str
    key: str | None
    epoch: int
    slab: SlabRef
    previous: SlabRef | None
    mode: InFlight
    started: float
    decision: Decision | None
    finished: float | None
    result: Mapping[str, Any] | None


class Journal(Protocol):
    """The durable record of a run's syncs. Every method that returns has made its change durable.

    Methods raise `JournalError`, and `FencedError` where a newer coordinator took over.
    """

    def next_epoch(self, held: int | None) -> int:
        """Return a new epoch, higher than any before; from now on commands with an older one are refused.

        A coordinator names the epoch that it holds, and is refused if a newer one took over; with None it takes over.
        """

    def begin(self, sync: str, key: str | None, epoch: int, slab: str, mode: InFlight) -> None:
        """Record that a sync starts; its `previous` is what is committed now."""

    def prepared(self, sync: str, epoch: int, version: str) -> None:
        """Record that the new weights lie sealed in the sync's slab."""

    def decide(self, sync: str, epoch: int, decision: Decision) -> Decision:
        """Write the row that decides for all replicas, and return the decision that stands: the first row does."""

    def finish(self, sync: str, epoch: int, result: Mapping[str, Any]) -> None:
        """Record that every replica is accounted for: it has the decided weights, or it samples nothing."""

    def unfinished(self) -> SyncRecord | None: ...
    def by_key(self, key: str) -> SyncRecord | None: ...
    def record(self, sync: str) -> SyncRecord | None: ...
    def records(self, limit: int) -> list[SyncRecord]:
        """Return the last `limit` syncs, newest first."""

    def committed(self) -> SlabRef | None:
        """Return the weights that every replica must have: those of the newest sync decided with "commit"; None before
        the first."""
