"""Whether the ranks of a trainer run: a busy one is told from one that is stopped, here and on other machines."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from omni_rl.processes import SILENT_AFTER
from omni_rl.sync.presence import Presence

HEALTH = "health"
"""The concurrency group of a rank's `alive`: a thread of its own, which answers while the rank computes."""


@dataclass(frozen=True)
class _Rank:
    """Its process `pid` is at `address`."""

    number: int
    address: str
    pid: int
    presence: Presence

    def stopped(self) -> str:
        """Why it counts as stopped, or nothing."""
        why = self.presence.look()
        return f"rank {self.number} (process {self.pid} on {self.address}) {why}" if why else ""


@dataclass
class Pulse:
    """Looks at ranks without waiting for them; any thread may call."""

    silent_after: float = SILENT_AFTER
    _ranks: list[_Rank] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _since: float | None = None

    def follow(self, actors: Sequence[Any], places: Sequence[tuple[str, int]]) -> None:
        """From now on look at these ranks, each at its place: the address of its node, and its process id."""
        own = ray.util.get_node_ip_address()
        with self._lock:
            self._ranks = [
                _Rank(number, address, pid, self._presence(actor, pid if address == own else None))
                for number, (actor, (address, pid)) in enumerate(zip(actors, places, strict=True))
            ]

    def look(self) -> str:
        """Which ranks execute nothing, and on which machine; empty while all run. Ranks on this machine have to be
        seen stopped for `STOPPED_AFTER` seconds, others have to be silent for `silent_after`."""
        with self._lock:
            found = [why for rank in self._ranks if (why := rank.stopped())]
            self._since = (self._since or time.monotonic()) if found else None
        return "; ".join(found)

    def gone(self) -> list[int]:
        """Ranks whose processes have ended. Nobody else says so of a trainer that is asked for nothing."""
        with self._lock:
            return [rank.number for rank in self._ranks if rank.presence.gone]

    def _presence(self, actor: Any, pid: int | None) -> Presence:
        return Presence(pid, lambda: actor.alive.remote(), silent_after=self.silent_after)

    @property
    def seconds(self) -> float:
        """For how long ranks have been found stopped, as of the last look."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since
