"""What is said of a judged step, and of what was done about it."""

import math

from omni_rl.api.base import finite
from omni_rl.api.steps import BreachAnswer, Verdict, WeightsAnswer, WorstSample
from omni_rl.consistency.policy import Drift
from omni_rl.ledger.types import StepKey
from omni_rl_services.coordinator.judging import Judged, StepWeights
from omni_rl_services.coordinator.runs import drift_answer


def verdict_of(key: StepKey, judged: Judged, drift: Drift, weights: StepWeights | None) -> Verdict:
    """`drift`: after this step. The samples' own weights are left out: they are not kept."""
    return Verdict(
        run=key.run,
        attempt=key.attempt,
        step=key.step,
        severity=drift.severity.label,
        reason=judged.judgement.reason,
        breaches=[
            BreachAnswer(
                bucket=breach.bucket,
                metric=breach.metric,
                value=_finite(breach.value),
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
                error=_finite(metrics.seq_mult_prob_error_mean),
            )
            for number, (rank, _, metrics) in zip(judged.worst, judged.kept, strict=True)
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
    """What an alarm says was done, by where the run stands as it opens; `gated`: whether generation is ours to stop."""
    if not gated:
        return "the trainer was told"
    if drift.gate == "halted":
        return "generation is stopped until a person resumes it"
    if drift.pursuit == "resyncing":
        return "generation is stopped, and the weights are brought again"
    return "generation is stopped, and the cause is looked for"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
