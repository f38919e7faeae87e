"""Checks of both policies: asked for by a person or by a run's drift, judged, and kept in the ledger."""

from dataclasses import dataclass
from typing import Any

from omni_rl.api.steps import Verdict
from omni_rl.api.syncs import CheckAnswer
from omni_rl.consistency.actions import WEIGHTS, Cause
from omni_rl.consistency.attribution.evidence import UNREAD
from omni_rl.consistency.limits import Judgement, Limits, Severity, Told, judge
from omni_rl.ledger.types import StepKey
from omni_rl_services.coordinator.bridge import Bridge, CheckRequest, CheckResult
from omni_rl_services.coordinator.events import Events
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.views import check_answer, check_document

PROVEN = "nothing was compared: the engines hold, byte for byte, the weights that were brought to them"


@dataclass(frozen=True)
class Checked:
    """What the cluster found, how it is judged, and what is told of it."""

    found: CheckResult
    judgement: Judgement
    answer: CheckAnswer


@dataclass(frozen=True)
class Explained:
    """A cause with its evidence. `proven`: no experiment on our own pair could know better: the records state it, or
    undoing it takes the difference away. Of weights the pair has proof, and of what the records leave open."""

    cause: Cause
    sentence: str
    evidence: list[dict[str, Any]]
    proven: bool


def judged(found: CheckResult, limits: Limits) -> Judgement:
    """A check by its figures. One without any, of weights that are not the trainer's, compared nothing: engines that
    hold them are not judged, and those that do not are wrong."""
    if found.compared or found.figures:
        return judge(found.figures, limits)
    if found.cause is None:
        return proven(Severity.UNJUDGED)
    return Judgement(Severity.PAUSE, Severity.PAUSE, (), (), (Told(found.sentence, Severity.PAUSE),))


def proven(severity: Severity) -> Judgement:
    """Of engines whose every byte is right, and that nothing was compared with."""
    return Judgement(severity, severity, (), (), (Told(PROVEN, severity),))


class Checks:
    """Both policies compared, now and before."""

    def __init__(self, bridge: Bridge, store: Store, events: Events) -> None:
        self._bridge = bridge
        self._store = store
        self._events = events

    async def make(self, request: CheckRequest, limits: Limits) -> Checked:
        """Durable when this returns. Raises what `Bridge.check` raises."""
        found = await self._bridge.check(request)
        judgement = judged(found, limits)
        key = None
        # What is made of a step after a resync tells of the weights that there are now.
        if not request.resample and request.run and request.attempt is not None and request.step is not None:
            key = StepKey(request.run, request.attempt, request.step)
        return Checked(found, judgement, await self._keep(check_document(found, judgement), key, request.run))

    async def of_records(self, key: StepKey) -> CheckAnswer:
        """Why a sealed step is as it is, as far as its records told when it was judged. Durable when this returns.
        Raises `NotFoundError`."""
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
        """Make a check durable, and tell who follows events."""
        answer = check_answer(await self._store.add_check(document, key))
        await self._events.publish(
            "check", run, check=answer.check, severity=answer.severity, cause=answer.cause, step=answer.step
        )
        return answer

    async def explained(self, key: StepKey) -> Explained | None:
        """What a sealed step's records gave as its cause; None where they gave none."""
        verdict = Verdict.model_validate((await self._store.step(key)).verdict)
        if verdict.cause in (None, Cause.UNKNOWN):
            return None
        cause = Cause(verdict.cause)
        by = {entry["check"] for entry in verdict.evidence if entry["result"] == "explains"}
        return Explained(cause, verdict.sentence, verdict.evidence, proven=cause not in WEIGHTS and not by & UNREAD)

    async def newest(self, limit: int, run: str | None, attempt: int | None, step: int | None) -> list[CheckAnswer]:
        """The newest first, with their evidence alone."""
        kept = await self._store.checks(limit, run, attempt, step)
        return [check_answer(one).model_copy(update={"figures": {}, "legs": {}, "answers": []}) for one in kept]

    async def one(self, number: int) -> CheckAnswer:
        """Whole. Raises `NotFoundError`."""
        return check_answer(await self._store.check(number))
