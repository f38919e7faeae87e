"""Turns rows of the ledger into answers of the API."""

from typing import Any

from omni_rl.api.base import finite
from omni_rl.api.incidents import FigureAnswer, GoodStepAnswer, IncidentAnswer
from omni_rl.api.runs import Recent, RunLine
from omni_rl.api.state import AlarmAnswer
from omni_rl.api.steps import SampleAnswer, StepAnswer, StepLine, TimelineAnswer, Verdict
from omni_rl.api.syncs import CheckAnswer, SyncAnswer
from omni_rl.bridge.seam import CheckResult
from omni_rl.consistency.guidance import GUIDE, remedy, section
from omni_rl.consistency.incidents import Figure
from omni_rl.consistency.limits import Judgement, Severity
from omni_rl.consistency.shown import number_or_none
from omni_rl.kinds import OVERALL
from omni_rl.ledger.run_list import Listed
from omni_rl.ledger.types import Incident, KeptCheck, Sample, Step, StepRow, Sync, Timeline
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Phase
from omni_rl_services.coordinator.runs import LiveRun

ALARMS = ("drift", "update")
"""The kinds of incident that version 0.1 called alarms."""


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
        positions={kind: list(found) for kind, found in step.by_position.items()},
        training=dict(step.row.training),
        flips=None if step.flips is None else list(step.flips),
    )


def sample_answer(sample: Sample) -> SampleAnswer:
    (record,) = sample.record.to_json()["records"]
    return SampleAnswer(
        **sample.key._asdict(),
        rank=sample.kept.rank,
        sample=sample.kept.sample,
        kind=sample.kept.kind,
        error=number_or_none(sample.kept.figures["seq_mult_prob_error_mean"]),
        record=record,
    )


def incident_answer(incident: Incident, guide: str = GUIDE) -> IncidentAnswer:
    """Return an incident as the API has it. `guide` is where the operating guide is read."""
    return IncidentAnswer(
        incident=incident.id,
        **{name: getattr(incident, name) for name in ("run", "kind", "what", "cause", "attempt", "step")},
        **{name: getattr(incident, name) for name in ("opened", "changed", "ended")},
        remedy=remedy(incident.kind, incident.cause),
        guide=f"{guide}#{section(incident.kind, incident.cause)}",
        severity=Severity(incident.severity).label,
        figure=_figure(incident.figure),
        good=None if incident.good is None else GoodStepAnswer(**vars(incident.good)),
        evidence=dict(incident.evidence),
        actions=list(incident.actions),
        acknowledged=incident.acknowledged,
        notes=list(incident.notes),
    )


def _figure(figure: Figure | None) -> FigureAnswer | None:
    if figure is None:
        return None
    value = number_or_none(figure.value)
    return FigureAnswer(kind=figure.kind, metric=figure.metric, value=value, limit=figure.limit)


def alarm_answer(incident: Incident) -> AlarmAnswer:
    """Return an incident in the form of version 0.1."""
    return AlarmAnswer(
        alarm=incident.id,
        run=incident.run or "",
        attempt=incident.attempt,
        step=incident.step,
        severity=Severity(incident.severity).label,
        cause=incident.cause,
        sentence=incident.what,
        action=incident.actions[-1].what if incident.actions else "",
        evidence=dict(incident.evidence),
        opened=incident.opened,
        closed=incident.ended,
    )


def run_line(run: LiveRun, listed: Listed) -> RunLine:
    incident, recent = listed.incident, run.line.recent
    return RunLine(
        **dict(run.answer()),
        need=listed.need.label,
        cause=run.drift.cause if incident is None else incident.cause,
        figure=_figure(run.line.figure),
        good=None if run.line.good is None else GoodStepAnswer(**vars(run.line.good)),
        recent=Recent(
            step=tuple(step for step, _, _ in recent),
            reward=tuple(reward for _, reward, _ in recent),
            drift=tuple(mean for _, _, mean in recent),
        ),
        incident=None if incident is None else incident.id,
        acknowledged=None if incident is None else incident.acknowledged,
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
        sealed=found.sealed.tolist(),
        severity=[Severity(severity).label for severity in found.severity.tolist()],
        broken=found.broken.tolist(),
        low={name: list(map(number_or_none, values.tolist())) for name, values in found.low.items()},
        high={name: list(map(number_or_none, values.tolist())) for name, values in found.high.items()},
    )


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
        phases=list(sync.transitions),
    )
    return answer if record.result is None else told(answer, SyncResult.from_json(record.result))


def told(answer: SyncAnswer, result: SyncResult) -> SyncAnswer:
    """Return a sync's answer with the result added."""
    fields = result.to_json()
    del fields["sync"], fields["origin"]
    if result.origin in ("trainer", "published", "directory"):
        fields["source"] = result.origin
    sentences = {"mismatches": list(result.mismatches), "nonfinite": list(result.nonfinite)}
    agreement = None if result.agreement is None else finite(result.agreement)
    return answer.model_copy(update={**fields, **sentences, "agreement": agreement})


def check_document(found: CheckResult, judgement: Judgement) -> dict[str, Any]:
    """Return what the ledger stores of a check."""
    return {
        "version": found.version,
        "severity": judgement.severity.label,
        "reason": judgement.reason,
        "figures": finite(found.figures),
        "legs": {leg: finite(figures) for leg, figures in found.legs.items()},
        "answers": [
            {
                "sample": one.sample,
                "kind": one.kind,
                "legs": {leg: list(map(number_or_none, d)) for leg, d in one.legs.items()},
            }
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
