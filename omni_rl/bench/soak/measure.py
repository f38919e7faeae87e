"""What is measured of a soak: seconds of every call, and the memory of every kind of process."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omni_rl.errors import OmniRLError
from omni_rl.service.state import marked

ENOUGH = 30
"""Calls of a kind, for a quantile of them to be compared."""
ROLES = {
    "services.coordinator": "coordinator",
    "omni_rl.bridge": "bridge",
    "ray::RolloutActor": "engine",
    "ray::TrainerActor": "trainer",
    "ray::TrainWorker": "trainer",
    "gcs_server": "Ray",
    "raylet": "Ray",
}
"""By a part of a process's command line."""


@dataclass
class Calls:
    """Of all threads. A call that begins or ends while something is dead counts apart."""

    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    failed: list[str] = field(default_factory=list)
    failed_meanwhile: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _dead: int = 0
    _deaths: int = 0

    @contextmanager
    def dead(self) -> Iterator[None]:
        """Something is, inside the block."""
        with self._lock:
            self._dead += 1
            self._deaths += 1
        try:
            yield
        finally:
            with self._lock:
                self._dead -= 1

    @contextmanager
    def timed(self, call: str) -> Iterator[None]:
        """Errors of the service end here: they are counted, and the caller goes on."""
        with self._lock:
            disturbed, deaths = self._dead > 0, self._deaths
        began = time.monotonic()
        try:
            yield
        except OmniRLError as error:
            with self._lock:
                if disturbed or self._dead or self._deaths != deaths:
                    self.failed_meanwhile += 1
                else:
                    self.failed.append(f"{call}: {type(error).__name__}: {error}")
            return
        ended = time.monotonic()
        with self._lock:
            if not (disturbed or self._dead or self._deaths != deaths):
                self.seconds[call].append((began - self.began, ended - began))

    def figures(self, quarter: float) -> dict[str, dict[str, Any]]:
        """Of each kind of call: how many, and median and p99 of the second and the last quarter, in seconds."""
        found = {}
        for call, times in sorted(self.seconds.items()):
            each = {"second": _within(times, quarter, 2 * quarter), "last": _within(times, 3 * quarter, 4 * quarter)}
            found[call] = {
                "count": len(times),
                **{name: _quantiles(seconds) for name, seconds in each.items() if len(seconds) >= ENOUGH},
            }
        return found


def _within(times: Sequence[tuple[float, float]], first: float, last: float) -> list[float]:
    return [seconds for began, seconds in times if first <= began < last]


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    return {"p50": round(float(np.percentile(seconds, 50)), 4), "p99": round(float(np.percentile(seconds, 99)), 4)}


def processes(service: str) -> dict[str, list[int]]:
    """Process ids by role."""
    found: dict[str, list[int]] = defaultdict(list)
    for pid in marked(service):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone meanwhile
            continue
        role = next((role for part, role in ROLES.items() if part in command), None)
        if role is not None:
            found[role].append(pid)
    return found


def memory(service: str) -> dict[str, float]:
    """MiB of the memory that is each role's own (no shared memory, no files), summed over its processes."""
    return {role: sum(_own_mib(pid) for pid in pids) for role, pids in processes(service).items()}


def _own_mib(pid: int) -> float:
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0.0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 2**20
