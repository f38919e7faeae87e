"""Compares both policies, when a person or a run's drift asks for it; the result is judged, and stored in the
ledger."""

from dataclasses import dataclass
from typing import Any

from omni_rl.api.steps import Verdict
from omni_rl.api.syncs import CheckAnswer
from omni_rl.bridge.seam import Bridge, CheckRequest, CheckResult
from omni_rl.consistency.actions import WEIGHTS, Cause
from omni_rl.consistency.evidence import UNREAD
from omni_rl.consistency.limits import Concern, Judgement, Limits, Severity, judge
from omni_rl.ledger.types import StepKey
from omni_rl_services.coordinator.events import Events
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.views import check_answer, check_document

PROVEN = "nothing was compared: the engines hold, byte for byte, the weights that were brought to them"


@dataclass(frozen=True)
class Checked:
    """A check: what the cluster found, how it is judged, and the answer to whoever asked."""

    found: CheckResult
    judgement: Judgement
    answer: CheckAnswer


@dataclass(frozen=True)
class Explained:
    """A cause with its evidence. `proven` says that no experiment on our own pair could know better: the records state
    the cause, or undoing it takes the difference away. For a cause about weights, and for what the records leave open,
    the pair has better proof."""

    cause: Cause
    sentence: str
    evidence: list[dict[str, Any]]
    proven: bool


def judged(found: CheckResult, limits: Limits) -> Judgement:
    """Judge a check by its figures. One without figures, because the weights are not the trainer's, compared nothing:
    engines that hold those weights are not judged, and engines that do not are wrong."""
    if found.compared or found.figures:
        return judge(found.figures, limits)
    if found.cause is None:
        return proven(Severity.UNJUDGED)
    return Judgement(Severity.PAUSE, Severity.PAUSE, (), (), (Concern(found.sentence, Severity.PAUSE),))


def proven(severity: Severity) -> Judgement:
    """Return the judgement of engines whose every byte is right, and that nothing was compared with."""
    return Judgement(severity, severity, (), (), (Concern(PROVEN, severity),))


class PolicyChecks:
    """Makes checks of both policies, and reads earlier ones."""

    def __init__(self, bridge: Bridge, store: Store, events: Events) -> None:
        self._bridge = bridge
        self._store = store
        self._events = events

    async def make(self, request: CheckRequest, limits: Limits) -> Checked:
        """Make a check, which is durable when this returns. Raises what `Bridge.check` raises."""
        found = await self._bridge.check(request)
        judgement = judged(found, limits)
        key = None
        # A recheck after a resync is about the weights that are served now, not about the step.
        if not request.resample and request.run and request.attempt is not None and request.step is not None:
            key = StepKey(request.run, request.attempt, request.step)
        return Checked(found, judgement, await self._keep(check_document(found, judgement), key, request.run))

    async def of_records(self, key: StepKey) -> CheckAnswer:
        """Return why a sealed step is as it is, as far as its records told when it was judged. The answer is stored as
        a check, durable when this returns. Raises `NotFoundError`."""
        step = await self._store.step(key)
        verdict = Verdict.model_validate(step.verdict)
        document = {
            "version": step.row.weight_version,
            "severity": verdict.severity,
            "reason": verdict.reason,
            "figures": verdict.figures,
            "legs": {},
            "answers": [],
            "cause": verdict.cause,
            "sentence": verdict.sentence,
            "evidence": verdict.evidence,
            "seconds": 0.0,
        }
        return await self._keep(document, key, key.run)

    async def _keep(self, document: dict[str, Any], key: StepKey | None, run: str | None) -> CheckAnswer:
        """Make a check durable, and publish it as an event."""
        answer = check_answer(await self._store.add_check(document, key))
        await self._events.publish(
            "check", run, check=answer.check, severity=answer.severity, cause=answer.cause, step=answer.step
        )
        return answer

    async def explained(self, key: StepKey) -> Explained | None:
        """Return the cause that a sealed step's records gave, or None where they gave none."""
        verdict = Verdict.model_validate((await self._store.step(key)).verdict)
        if verdict.cause in (None, Cause.UNKNOWN):
            return None
        cause = Cause(verdict.cause)
        by = {entry["check"] for entry in verdict.evidence if entry["result"] == "explains"}
        return Explained(cause, verdict.sentence, verdict.evidence, proven=cause not in WEIGHTS and not by & UNREAD)

    async def newest(self, limit: int, run: str | None, attempt: int | None, step: int | None) -> list[CheckAnswer]:
        """Return checks, the newest first; of what they found, the evidence alone."""
        kept = await self._store.checks(limit=limit, run=run, attempt=attempt, step=step)
        return [check_answer(one).model_copy(update={"figures": {}, "legs": {}, "answers": []}) for one in kept]

    async def one(self, number: int) -> CheckAnswer:
        """Return one check, whole. Raises `NotFoundError`."""
        return check_answer(await self._store.check(number))
