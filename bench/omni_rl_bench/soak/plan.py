"""Decides which faults a soak has, and their order: a function of the seed alone."""

import random
from dataclasses import dataclass
from typing import Literal

How = Literal["stop", "kill", "fill", "clock"]


@dataclass(frozen=True)
class Fault:
    """A fault: `how` strikes `what`. A kind of process is stopped or killed, a disk is filled, the clock is set.

    `shows`: the service cannot do its work meanwhile, so that `/readyz` has to say so. `seconds` is the time for the
    service to be whole again by itself, once the fault is over.
    """

    how: How
    what: str
    shows: bool = False
    seconds: float = 120.0

    def __str__(self) -> str:
        return f"{self.how} {self.what}"


SHOWN_SECONDS = 12.0
"""The seconds for `/readyz` to say that the service is not ready, during a fault that stays."""
HELD_SECONDS = (4.0, 16.0)
"""How many seconds a process is stopped, a disk is full or the clock is wrong: at least and at most."""
GAP_SECONDS = (3.0, 9.0)
"""The seconds between two faults: at least and at most."""
SPARING = (
    Fault("stop", "coordinator", shows=True, seconds=60.0),
    Fault("stop", "engine"),
    Fault("stop", "trainer", shows=True, seconds=60.0),
    Fault("stop", "rank 0", shows=True, seconds=60.0),
    Fault("stop", "rank 1", shows=True, seconds=60.0),
    Fault("stop", "head", shows=True, seconds=60.0),
    Fault("stop", "raylet", shows=True, seconds=60.0),
    Fault("kill", "engine"),
    Fault("kill", "job", seconds=60.0),
    Fault("fill", "shared memory", seconds=60.0),
    Fault("fill", "ledger", shows=True, seconds=60.0),
    Fault("clock", "back", seconds=60.0),
    Fault("clock", "forward", seconds=60.0),
)
"""The faults after which the processes whose memory is followed are still the same, but for the youngest engine. An
engine that is stopped is replaced by the next sync, and need not be seen."""
ENDING = (Fault("kill", "coordinator"), Fault("stop", "bridge"), Fault("kill", "bridge"))
"""The faults that end the coordinator's side. The bridge is also the owner of the slabs of its host."""
STARTING_ANEW = (
    Fault("kill", "trainer", seconds=240.0),
    Fault("kill", "rank 0", seconds=240.0),
    Fault("kill", "rank 1", seconds=240.0),
    Fault("kill", "head", seconds=300.0),
    Fault("kill", "raylet", seconds=300.0),
)
"""The faults that end what a job has learnt, or all actors."""
SHORT_MINUTES = 25.0
"""A soak of fewer minutes has no time for `STARTING_ANEW` before `LATE_FROM`, and follows no memory."""
LATE_FROM = 0.4
"""The part of the time from which on faults are sparing: the memory of the last half is compared, and a process that is
always young would show no growth; a process that was started last has warmed up by then."""


class Plan:
    """The faults of a soak of so many minutes, each with how long it is to last and how long to wait before it."""

    def __init__(self, seed: int, minutes: float) -> None:
        self._random = random.Random(seed)  # noqa: S311, what dies is no secret
        self._short = minutes < SHORT_MINUTES
        self._late = LATE_FROM * 60 * minutes
        self._waiting: list[Fault] = []
        self._unmet = set(self.round)

    @property
    def round(self) -> tuple[Fault, ...]:
        """The faults that a soak meets at least."""
        return SPARING + ENDING if self._short else SPARING + ENDING + STARTING_ANEW

    def gap(self) -> float:
        return self._random.uniform(*GAP_SECONDS)

    def held(self) -> float:
        return self._random.uniform(*HELD_SECONDS)

    def next(self, at: float) -> Fault:
        """Return the fault after `at` seconds: every kind is as often as every other."""
        late = not self._short and at >= self._late and not self._unmet
        kinds = SPARING if late else self.round
        self._waiting = [fault for fault in self._waiting if fault in kinds] or self._random.sample(kinds, len(kinds))
        fault = self._waiting.pop()
        self._unmet.discard(fault)
        return fault
