"""Measures every call of a soak: how long it took, and whether it failed while nothing was dead."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omni_rl.errors import OmniRLError

ENOUGH = {"p50": 30, "p99": 100}
"""How many calls of a kind in a third of the time it takes for a quantile of them to be compared."""


@dataclass(frozen=True)
class Trouble:
    """A call that failed while something was dead; both times by the monotonic clock."""

    call: str
    began: float
    ended: float
    error: str


@dataclass
class Calls:
    """The calls of all threads. A call that begins or ends while something is dead counts apart."""

    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    failed: list[str] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _dead: int = 0
    _deaths: int = 0

    @contextmanager
    def dead(self) -> Iterator[None]:
        """Note that something is dead, inside the context."""
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
        """Time the call inside the context. Errors of the service end here: they are counted, and the caller goes
        on."""
        with self._lock:
            disturbed, deaths = self._dead > 0, self._deaths
        began = time.monotonic()
        try:
            yield
        except OmniRLError as error:
            told = f"{type(error).__name__}: {error}"
            with self._lock:
                if disturbed or self._dead or self._deaths != deaths:
                    self.troubles.append(Trouble(call, began, time.monotonic(), told))
                else:
                    self.failed.append(f"{call}: {told}")
            return
        ended = time.monotonic()
        with self._lock:
            if not (disturbed or self._dead or self._deaths != deaths):
                self.seconds[call].append((began - self.began, ended - began))

    def figures(self, seconds: float) -> dict[str, dict[str, Any]]:
        """Return for each kind of call how many there were, and quantiles of the first and the last third of `seconds`,
        in seconds."""
        third = seconds / 3
        found: dict[str, dict[str, Any]] = {}
        for call, times in sorted(self.seconds.items()):
            found[call] = {
                "count": len(times),
                "first": _quantiles(_within(times, 0, third)),
                "last": _quantiles(_within(times, seconds - third, seconds)),
            }
        return found


def rises(figures: dict[str, dict[str, Any]], quantile: str) -> list[float]:
    """Return each call's quantile of the last third over that of the first, where there are enough calls."""
    return [
        each["last"][quantile] / each["first"][quantile]
        for each in figures.values()
        if quantile in each["first"] and quantile in each["last"]
    ]


def _within(times: Sequence[tuple[float, float]], first: float, last: float) -> list[float]:
    return [seconds for began, seconds in times if first <= began < last]


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    percents = {"p50": 50, "p99": 99}
    return {
        name: round(float(np.percentile(seconds, percents[name])), 4)
        for name, enough in ENOUGH.items()
        if len(seconds) >= enough
    }
