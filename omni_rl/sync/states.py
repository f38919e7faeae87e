"""Lists the phases of a weight sync, and which may follow which."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Decision = Literal["commit", "abort"]


class Phase(StrEnum):
    IDLE = "idle"
    PREPARE = "prepare"
    PAUSE = "pause"
    APPLY = "apply"
    VERIFY = "verify"
    COMMIT = "commit"
    RESUME = "resume"
    ROLLBACK = "rollback"
    QUARANTINE = "quarantine"


Course = Literal["open", "forward", "aborted", "back"]
"""What is decided of a sync. open: nothing. forward: to commit, every replica gets the new weights. aborted: the new
weights are given up, and what they touched must be undone. back: that is under way."""

# A coordinator that finds a decided sync after a crash begins in IDLE again.
ALLOWED: Mapping[Course, Mapping[Phase, frozenset[Phase]]] = {
    "open": {
        Phase.IDLE: frozenset({Phase.PREPARE}),
        Phase.PREPARE: frozenset({Phase.PAUSE}),
        Phase.PAUSE: frozenset({Phase.APPLY}),
        Phase.APPLY: frozenset({Phase.VERIFY}),
        Phase.VERIFY: frozenset({Phase.COMMIT}),
    },
    "forward": {
        Phase.IDLE: frozenset({Phase.RESUME}),
        Phase.COMMIT: frozenset({Phase.RESUME}),
        Phase.RESUME: frozenset({Phase.IDLE, Phase.QUARANTINE}),
        Phase.QUARANTINE: frozenset({Phase.IDLE}),
    },
    "aborted": {
        Phase.IDLE: frozenset({Phase.ROLLBACK}),
        Phase.PREPARE: frozenset({Phase.IDLE}),
        Phase.PAUSE: frozenset({Phase.ROLLBACK}),
        Phase.APPLY: frozenset({Phase.ROLLBACK}),
        Phase.VERIFY: frozenset({Phase.ROLLBACK}),
        Phase.COMMIT: frozenset({Phase.ROLLBACK}),
    },
    "back": {
        Phase.ROLLBACK: frozenset({Phase.VERIFY}),
        Phase.VERIFY: frozenset({Phase.RESUME}),
        Phase.RESUME: frozenset({Phase.IDLE, Phase.QUARANTINE}),
        Phase.QUARANTINE: frozenset({Phase.IDLE}),
    },
}


@dataclass(frozen=True)
class SyncEvent:
    """Something that happened in a sync: a phase was entered, or a replica (`replica`) did its part of it or failed."""

    sync: str
    phase: Phase
    what: Literal["entered", "done", "failed"]
    replica: str | None = None
    detail: str = ""


Observer = Callable[[SyncEvent], None]


class Machine:
    """Where one sync stands, and how long each phase took.

    An assertion fails on a step that `ALLOWED` does not have: that is a fault of ours.
    """

    def __init__(self, sync: str, observe: Observer) -> None:
        self.sync = sync
        self.phase = Phase.IDLE
        self.course: Course = "open"
        self.seconds: dict[str, float] = {}
        self._observe = observe
        self._entered = time.perf_counter()

    def enter(self, phase: Phase) -> None:
        allowed = ALLOWED[self.course].get(self.phase, frozenset())
        assert phase in allowed, f"{self.phase} -> {phase} is no step of a sync that is {self.course}"
        now = time.perf_counter()
        if self.phase is not Phase.IDLE:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self._entered
        self.phase, self._entered = phase, now
        if phase is Phase.ROLLBACK:
            self.course = "back"
        self._observe(SyncEvent(self.sync, phase, "entered"))

    def decide(self, decision: Decision) -> None:
        """Take the final decision. The new weights can only be decided for when every replica has been proven, or was
        before a crash."""
        assert self.course == "open", f"already decided: {self.course}"
        assert decision == "abort" or self.phase in (Phase.COMMIT, Phase.IDLE), f"commit in {self.phase}"
        self.course = "forward" if decision == "commit" else "aborted"
