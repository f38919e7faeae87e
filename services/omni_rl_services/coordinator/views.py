"""Rows of the ledger as answers."""

import math
from collections.abc import Iterable
from typing import Any

from omni_rl.api.base import finite
from omni_rl.api.state import AlarmAnswer
from omni_rl.api.steps import PositionBin, SampleAnswer, StepAnswer, StepLine, TimelineAnswer, Verdict
from omni_rl.api.syncs import CheckAnswer, SyncAnswer, SyncPhase
from omni_rl.consistency.limits import Judgement, Severity
from omni_rl.kinds import OVERALL
from omni_rl.ledger.types import Alarm, KeptCheck, Sample, Step, StepRow, Sync, Timeline
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Phase
from omni_rl_services.coordinator.bridge import CheckResult


def step_line(row: StepRow) -> StepLine:
    return StepLine(
        **row.key._asdict(),
        sealed=row.sealed,
        severity=Severity(row.severity).label,
        samples=row.samples,
        tokens=row.tokens,
        weight_version=row.weight_version,
        training=dict(row.training),
        figures=finite({OVERALL: vars(row.figures)})[OVERALL],
    )


def step_answer(step: Step) -> StepAnswer:
    return StepAnswer(
        verdict=Verdict.model_validate(step.verdict),
        sealed=step.row.sealed,
        weight_version=step.row.weight_version,
        positions={
            kind: [PositionBin(first=b.first, last=b.last, figures=finite({"": b.figures})[""]) for b in found]
            for kind, found in step.by_position.items()
        },
        training=dict(step.row.training),
        flips=None if step.flips is None else list(step.flips),
    )


def sample_answer(sample: Sample) -> SampleAnswer:
    (record,) = sample.record.to_json()["records"]
    error = sample.kept.figures["seq_mult_prob_error_mean"]
    return SampleAnswer(
        **sample.key._asdict(),
        rank=sample.kept.rank,
        sample=sample.kept.sample,
        kind=sample.kept.kind,
        error=error if math.isfinite(error) else None,
        record=record,
    )


def alarm_answer(alarm: Alarm) -> AlarmAnswer:
    return AlarmAnswer(
        alarm=alarm.id,
        run=alarm.run,
        attempt=alarm.attempt,
        step=alarm.step,
        severity=Severity(alarm.severity).label,
        cause=alarm.cause,
        sentence=alarm.sentence,
        action=alarm.action,
        evidence=dict(alarm.evidence),
        opened=alarm.opened,
        closed=alarm.closed,
    )


def timeline_answer(run: str, attempt: int, found: Timeline) -> TimelineAnswer:
    return TimelineAnswer(
        run=run,
        attempt=attempt,
        kind=found.kind,
        width=found.width,
        first=found.first.tolist(),
        last=found.last.tolist(),
        steps=found.steps.tolist(),
        severity=[Severity(severity).label for severity in found.severity.tolist()],
        broken=found.broken.tolist(),
        low={name: _numbers(values.tolist()) for name, values in found.low.items()},
        high={name: _numbers(values.tolist()) for name, values in found.high.items()},
    )


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def sync_answer(sync: Sync) -> SyncAnswer:
    record = sync.record
    entered = [moved.phase for moved in sync.transitions if moved.what == "entered"]
    answer = SyncAnswer(
        sync=record.sync,
        state="running" if record.finished is None else "finished",
        phase=entered[-1] if entered else Phase.IDLE,
        key=record.key,
        started=record.started,
        finished=record.finished,
        version=record.slab.version,
        phases=[SyncPhase(**vars(moved)) for moved in sync.transitions],
    )
    return answer if record.result is None else told(answer, SyncResult.from_json(record.result))


def told(answer: SyncAnswer, result: SyncResult) -> SyncAnswer:
    """With what came of it."""
    fields = result.to_json()
    del fields["sync"], fields["origin"]
    if result.origin in ("trainer", "published", "directory"):
        fields["source"] = result.origin
    sentences = {"mismatches": list(result.mismatches), "nonfinite": list(result.nonfinite)}
    agreement = None if result.agreement is None else finite(result.agreement)
    return answer.model_copy(update={**fields, **sentences, "agreement": agreement})


def check_document(found: CheckResult, judgement: Judgement) -> dict[str, Any]:
    """What the ledger keeps of a check."""
    return {
        "version": found.version,
        "severity": judgement.severity.label,
        "reason": judgement.reason,
        "figures": finite(found.figures),
        "legs": {leg: finite(figures) for leg, figures in found.legs.items()},
        "answers": [
            {"sample": one.sample, "kind": one.kind, "legs": {leg: _numbers(d) for leg, d in one.legs.items()}}
            for one in found.answers
        ],
        "compared": found.compared,
        "cause": found.cause,
        "sentence": found.sentence,
        "evidence": [dict(entry) for entry in found.evidence],
        "seconds": found.seconds,
    }


def check_answer(kept: KeptCheck) -> CheckAnswer:
    where = {} if kept.key is None else kept.key._asdict()
    return CheckAnswer(check=kept.id, at=kept.at, **where, **kept.found)
