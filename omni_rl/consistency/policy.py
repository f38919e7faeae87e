"""The state machine on drift: from judged steps, found causes and finished actions to a severity, a gate and commands.

It is pure: the same inputs give the same outcomes. Its caller carries the commands out and feeds their results back.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from omni_rl.consistency.actions import CAUSES, Action, Cause
from omni_rl.consistency.limits import Judgement, Severity

Gate = Literal["open", "paused", "halted"]
Pursuit = Literal["nothing", "attributing", "resyncing", "rechecking"]


class DriftCommand(StrEnum):
    """What the caller has to do, in order."""

    CLOSE = "close"
    ATTRIBUTE = "attribute"
    RESYNC = "resync"
    RECHECK = "recheck"
    OPEN = "open"


@dataclass(frozen=True)
class Drift:
    """Where a run stands.

    `recent` has the severities that the last judged steps hold, at most as many as it takes to fall. `gate` is paused
    until a pursuit ends, or halted until a person opens it; always open where it is not ours (`DriftPolicy.gated`).
    `pursuit` is what is under way about the incident, and `at` the severity that the pursuit began with. `resynced`:
    this incident has had its resync; `excused`: its gate was opened again once because noise explained it. `peak` is
    how many times its limit the incident's worst figure was. An incident ends where severity is OK.
    """

    severity: Severity = Severity.OK
    recent: tuple[Severity, ...] = ()
    gate: Gate = "open"
    pursuit: Pursuit = "nothing"
    at: Severity = Severity.OK
    cause: Cause | None = None
    resynced: bool = False
    excused: bool = False
    peak: float = 0.0

    @property
    def alarming(self) -> bool:
        """Whether a person has to look at the run."""
        return self.severity is Severity.PAUSE or self.gate == "halted"


Part = Literal["severity", "gate", "pursuit"]


@dataclass(frozen=True)
class Transition:
    """One change of one part of `Drift`, and why it was made."""

    what: Part
    before: str
    after: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """The `drift` after an input, what is to be done, and every change with its reason."""

    drift: Drift
    commands: tuple[DriftCommand, ...] = ()
    transitions: tuple[Transition, ...] = ()


@dataclass(frozen=True)
class DriftPolicy:
    """The rules by which a run's drift changes.

    `settle` is how many judged steps in a row must hold a lower severity before it falls. `gated`: generation is ours
    to stop; where it is not (another framework's run), verdicts advise and nothing is pursued.
    """

    settle: int = 3
    gated: bool = True

    def judged(self, drift: Drift, judgement: Judgement) -> Outcome:
        """Take in that a step was judged.

        Severity rises at once, and falls to the highest that one of the last `settle` steps holds; never while the gate
        is shut, because steps that were under way when it closed prove nothing. A step that was not judged changes
        nothing.
        """
        if judgement.severity is Severity.UNJUDGED:
            return Outcome(drift)
        severity = max(drift.severity, judgement.severity)
        recent: tuple[Severity, ...] = ()
        if drift.gate == "open":
            recent = (*drift.recent, judgement.holding)[-self.settle :]
            if len(recent) == self.settle:
                severity = max(judgement.severity, min(drift.severity, max(recent)))
        after = replace(drift, severity=severity, recent=recent, peak=max(drift.peak, judgement.excess))
        if severity is Severity.OK and drift.pursuit == "nothing":
            after = replace(after, cause=None, resynced=False, excused=False, peak=0.0)
        if not self.gated or severity <= drift.severity:
            return _outcome(drift, after, judgement.reason)
        commands = []
        if severity is Severity.PAUSE and drift.gate == "open":
            after = replace(after, gate="paused", recent=())
            commands.append(DriftCommand.CLOSE)
        if drift.pursuit == "nothing" and drift.gate != "halted":
            after = replace(after, pursuit="attributing", at=severity)
            commands.append(DriftCommand.ATTRIBUTE)
        return _outcome(drift, after, judgement.reason, *commands)

    def attributed(self, drift: Drift, cause: Cause, evidence: str) -> Outcome:
        """Take in that the search for the cause ended; `evidence` is one sentence. It comes too late where the gate was
        opened."""
        if drift.pursuit != "attributing":
            return Outcome(drift)
        found = replace(drift, cause=cause, pursuit="nothing")
        action = CAUSES[cause].actions[drift.severity]
        reason = f"{cause}: {evidence}"
        if action is Action.RESYNC and drift.resynced:
            return self._halted(drift, found, f"{reason}; it persists after a resync")
        if action is Action.MASK and drift.severity is Severity.PAUSE and drift.excused:
            return self._halted(
                drift, found, f"{reason}; noise does not do that twice, or the run's limits are too low"
            )
        match action:
            case Action.RESYNC:
                resyncing = replace(found, pursuit="resyncing", resynced=True, at=drift.severity)
                return _outcome(drift, resyncing, reason, DriftCommand.RESYNC)
            case Action.HALT:
                return self._halted(drift, found, reason)
            case Action.MASK:
                excused = drift.excused or drift.severity is Severity.PAUSE
                return self._opened(drift, replace(found, severity=Severity.MASK, excused=excused), reason)
            case Action.NONE:
                return _outcome(drift, found, reason)

    def resynced(self, drift: Drift, failure: str | None = None) -> Outcome:
        """Take in that the resync went through, or failed."""
        if drift.pursuit != "resyncing":
            return Outcome(drift)
        if failure is not None:
            return self._halted(drift, replace(drift, pursuit="nothing"), f"the resync failed: {failure}")
        return _outcome(drift, replace(drift, pursuit="rechecking"), "resynced", DriftCommand.RECHECK)

    def rechecked(self, drift: Drift, judgement: Judgement | None) -> Outcome:
        """Take in how the probe batch was judged after the resync. None, or a judgement of nothing: the policies could
        not be compared."""
        if drift.pursuit != "rechecking":
            return Outcome(drift)
        done = replace(drift, pursuit="nothing")
        if judgement is None or judgement.severity is Severity.UNJUDGED:
            return self._halted(drift, done, "the recheck could not be made")
        severity = judgement.severity
        if severity >= drift.at and severity >= Severity.MASK:
            return self._halted(drift, done, f"it persists after a resync: {judgement.reason}")
        done = replace(done, severity=severity, recent=())
        if severity is Severity.OK:
            # The probe may not show what the step did: the next step says whether it healed, and gets no second resync.
            done = replace(done, cause=None, peak=0.0)
        return self._opened(drift, done, f"rechecked: {judgement.reason}")

    def resumed(self, drift: Drift, reason: str) -> Outcome:
        """Take in that a person opens the gate and vouches for the run: the incident is over, the next step is judged
        afresh."""
        return _outcome(drift, Drift(), reason, *_if(drift.gate != "open", DriftCommand.OPEN))

    def _halted(self, before: Drift, after: Drift, reason: str) -> Outcome:
        return _outcome(before, replace(after, gate="halted"), reason, *_if(before.gate == "open", DriftCommand.CLOSE))

    def _opened(self, before: Drift, after: Drift, reason: str) -> Outcome:
        if before.gate != "paused":
            return _outcome(before, after, reason)
        return _outcome(before, replace(after, gate="open"), reason, DriftCommand.OPEN)


def _if(condition: bool, command: DriftCommand) -> tuple[DriftCommand, ...]:
    return (command,) if condition else ()


def _outcome(before: Drift, after: Drift, reason: str, *commands: DriftCommand) -> Outcome:
    changes: tuple[tuple[Part, str, str], ...] = (
        ("severity", before.severity.label, after.severity.label),
        ("gate", before.gate, after.gate),
        ("pursuit", before.pursuit, after.pursuit),
    )
    transitions = tuple(Transition(what, old, new, reason) for what, old, new in changes if old != new)
    return Outcome(after, commands, transitions)
