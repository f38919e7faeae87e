"""What the coordinator says of a judged step, and of what was done about it."""

from omni_rl.api.base import finite
from omni_rl.api.steps import BreachAnswer, Verdict, WeightsAnswer, WorstSample
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.policy import Drift
from omni_rl.consistency.shown import number_or_none
from omni_rl.ledger.types import StepKey
from omni_rl_services.coordinator.judging import Judged, StepWeights
from omni_rl_services.coordinator.runs import drift_answer

HELD = {Severity.WARN: "at warn", Severity.MASK: "masked", Severity.PAUSE: "paused"}


def severity_of(judged: Judged, drift: Drift, *, live: bool) -> Severity:
    """Return the severity that a step is given: where the run stands after it, or the step's own if it does not move
    the run."""
    own = judged.judgement.severity
    return drift.severity if live and own is not Severity.UNJUDGED else own


def _reason(judged: Judged, drift: Drift, settle: int, *, live: bool) -> str:
    """Return what the step's severity comes from: its own figures, or those of steps before it."""
    judgement = judged.judgement
    if not live:
        return f"{judgement.reason}; a newer attempt of the run is under way, which this does not move"
    if judgement.severity is Severity.UNJUDGED or judgement.severity >= drift.severity:
        return judgement.reason
    if drift.gate != "open":
        return f"still {HELD[drift.severity]}: the gate is {drift.gate}; of this step: {judgement.reason}"
    calm = next((n for n, held in enumerate(reversed(drift.recent)) if held >= drift.severity), len(drift.recent))
    return f"still {HELD[drift.severity]}: calm step {calm} of {settle}; of this step: {judgement.reason}"


def verdict_of(
    key: StepKey, judged: Judged, drift: Drift, weights: StepWeights | None, settle: int, *, live: bool
) -> Verdict:
    """Return the verdict on a step. `drift` is where the run stands after it, `settle` the calm steps until a severity
    falls, and `live` whether the step's attempt moves the run. The samples' own weights are left out: they are not
    stored."""
    return Verdict(
        run=key.run,
        attempt=key.attempt,
        step=key.step,
        severity=severity_of(judged, drift, live=live).label,
        reason=_reason(judged, drift, settle, live=live),
        cause=None if judged.explanation is None else str(judged.explanation.cause),
        sentence="" if judged.explanation is None else judged.explanation.sentence,
        evidence=[] if judged.explanation is None else [f.as_dict() for f in judged.explanation.findings],
        breaches=[
            BreachAnswer(
                kind=breach.kind,
                metric=breach.metric,
                value=number_or_none(breach.value),
                limit=breach.limit,
                severity=breach.severity.label,
            )
            for breach in judged.judgement.breaches
        ],
        drift=drift_answer(drift),
        samples=len(judged.columns.samples),
        tokens=judged.columns.tokens,
        figures=finite(judged.comparison.figures),
        worst=[
            WorstSample(
                rank=rank,
                sample=judged.columns.samples[number],
                kind=judged.columns.kinds[number],
                error=number_or_none(metrics.seq_mult_prob_error_mean),
            )
            for number, rank, metrics in zip(judged.worst, judged.kept.ranks, judged.kept.figures, strict=True)
        ],
        weights=None
        if weights is None
        else WeightsAnswer(
            method=weights.method,
            clipped_fraction=weights.clipped_fraction,
            effective_sample_size=weights.effective_sample_size,
        ),
    )


def done_about(drift: Drift, gated: bool) -> str:
    """Return what an incident says was done about it, by where the run stands as it opens. `gated` says whether
    generation is ours to stop."""
    if not gated or (drift.gate == "open" and drift.pursuit == "nothing"):
        return "the trainer was told"
    if drift.gate == "halted":
        return "generation is stopped until a person resumes it"
    generation = "goes on" if drift.gate == "open" else "is stopped"
    pursuit = "the weights are brought again" if drift.pursuit == "resyncing" else "the cause is looked for"
    return f"generation {generation}, and {pursuit}"
