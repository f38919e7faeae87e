"""Finds out whether the ranks of a trainer run, here and on other machines: a busy rank is told from a stopped one."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from omni_rl.processes import SILENT_AFTER
from omni_rl.sync.presence import Presence

HEALTH = "health"
"""The concurrency group of a rank's `alive`, which gives it a thread of its own to answer while the rank computes."""


@dataclass(frozen=True)
class _Rank:
    """A rank whose process `pid` is on the node at `address`."""

    number: int
    address: str
    pid: int
    presence: Presence

    def stopped(self) -> str:
        """Return why the rank counts as stopped; empty while it runs."""
        why = self.presence.look()
        return f"rank {self.number} (process {self.pid} on {self.address}) {why}" if why else ""


@dataclass
class Pulse:
    """Looks at ranks without waiting for them. Any thread may call the methods."""

    silent_after: float = SILENT_AFTER
    _ranks: list[_Rank] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _since: float | None = None

    def follow(self, actors: Sequence[Any], places: Sequence[tuple[str, int]]) -> None:
        """Look at these ranks from now on. Each has a place: the address of its node, and its process id."""
        own = ray.util.get_node_ip_address()
        with self._lock:
            self._ranks = [
                _Rank(number, address, pid, self._presence(actor, pid if address == own else None))
                for number, (actor, (address, pid)) in enumerate(zip(actors, places, strict=True))
            ]

    def look(self) -> str:
        """Return which ranks execute nothing, and on which machine; empty while all run. Ranks on this machine count as
        stopped after `STOPPED_AFTER` seconds, others after they have been silent for `silent_after` seconds."""
        with self._lock:
            found = [why for rank in self._ranks if (why := rank.stopped())]
            self._since = (self._since or time.monotonic()) if found else None
        return "; ".join(found)

    def gone(self) -> list[int]:
        """Return the ranks whose processes have ended. While nobody calls the trainer, nothing else notices that."""
        with self._lock:
            return [rank.number for rank in self._ranks if rank.presence.gone]

    def _presence(self, actor: Any, pid: int | None) -> Presence:
        return Presence(pid, lambda: actor.alive.remote(), silent_after=self.silent_after)

    @property
    def seconds(self) -> float:
        """The seconds since a look first found ranks stopped; 0.0 if the last look found none."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since
