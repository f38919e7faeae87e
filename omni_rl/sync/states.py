"""The phases of a weight sync, and which may follow which."""

from collections.abc import Mapping
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


# By what is decided: nothing yet, the new weights (every replica goes forward), the old ones (every replica goes back).
_UNDECIDED = {
    Phase.IDLE: {Phase.PREPARE},
    Phase.PREPARE: {Phase.PAUSE},
    Phase.PAUSE: {Phase.APPLY},
    Phase.APPLY: {Phase.VERIFY},
    Phase.VERIFY: {Phase.COMMIT},
}
_FORWARD = {
    Phase.IDLE: {Phase.RESUME},  # after a crash of the coordinator
    Phase.COMMIT: {Phase.RESUME},
    Phase.RESUME: {Phase.IDLE, Phase.QUARANTINE},
    Phase.QUARANTINE: {Phase.IDLE},
}
_BACK = {
    Phase.IDLE: {Phase.ROLLBACK},  # after a crash of the coordinator
    Phase.PREPARE: {Phase.IDLE},  # no replica was touched
    Phase.PAUSE: {Phase.ROLLBACK},
    Phase.APPLY: {Phase.ROLLBACK},
    Phase.VERIFY: {Phase.ROLLBACK, Phase.RESUME, Phase.QUARANTINE},
    Phase.COMMIT: {Phase.ROLLBACK},  # the decision for the new weights could not be written
    Phase.ROLLBACK: {Phase.VERIFY, Phase.QUARANTINE},
    Phase.RESUME: {Phase.IDLE, Phase.QUARANTINE},
    Phase.QUARANTINE: {Phase.RESUME, Phase.IDLE},
}
ALLOWED: Mapping[Decision | None, Mapping[Phase, set[Phase]]] = {None: _UNDECIDED, "commit": _FORWARD, "abort": _BACK}


class Machine:
    """Where one sync stands. An assertion fails on a step that `ALLOWED` does not have: that is a fault of ours."""

    def __init__(self) -> None:
        self.phase = Phase.IDLE
        self.decision: Decision | None = None

    def enter(self, phase: Phase) -> None:
        allowed = ALLOWED[self.decision].get(self.phase, set())
        assert phase in allowed, f"{self.phase} -> {phase} with decision {self.decision} is no step of a sync"
        self.phase = phase

    def decide(self, decision: Decision) -> None:
        """Final. The new weights can only be decided for in COMMIT, when every replica has been proven."""
        assert self.decision is None, f"already decided: {self.decision}"
        assert decision == "abort" or self.phase in (Phase.COMMIT, Phase.IDLE), f"commit in {self.phase}"
        self.decision = decision
