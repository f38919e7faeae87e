"""How far two ways of computing the same answers lie apart, and whether that is a step's difference."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.bands import Bands
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare_step
from omni_rl.consistency.evidence import mean_abs
from omni_rl.consistency.figures import Metrics
from omni_rl.consistency.left_out import TIES
from omni_rl.consistency.records import SampleRecord

SHARE = 0.3
"""The share of a step's difference that a leg must hold, at least, to explain it."""


def apart(records: Sequence[SampleRecord], bands: Bands) -> float:
    """Return the mean abs d of the kind of prompt that is furthest apart: a fault of one modality must not drown in the
    others. Tokens that router flips touch are left out, of a leg as of the step that it has to explain."""
    means = by_kind(records, bands).values()
    return max(means, default=0.0, key=lambda value: np.inf if np.isnan(value) else value)


def by_kind(records: Sequence[SampleRecord], bands: Bands) -> Mapping[str, float]:
    """Return the mean abs d of each kind of prompt."""
    found = compare_step(StepColumns.of(records), TIES[bands.dtype]).by_kind
    return {kind: mean_of(of.metrics) for kind, of in found.items()}


def mean_of(metrics: Metrics) -> float:
    """Return the mean abs d, or 0.0 where there are no tokens."""
    return metrics.logprob_abs_diff_mean if metrics.tokens else 0.0


def outside(leg: float, step: float, bands: Bands) -> bool:
    """Return whether a leg is more than noise, and as much of the `step` as it has to be to explain it.

    `step` is NaN where it is not known. A step within noise needs no explanation: a leg of other answers, of a few
    tokens, may well be wider.
    """
    if step <= bands.mean:
        return False
    return not leg <= max(bands.mean, 0.0 if np.isnan(step) else SHARE * step)


def kinds_outside(records: Sequence[SampleRecord], bands: Bands) -> tuple[str, ...]:
    """Return the kinds of prompt that are further apart than noise."""
    return tuple(kind for kind, value in by_kind(records, bands).items() if not value <= bands.mean)


def pairs(
    samples: Sequence[SampleRecord],
    one: Mapping[str, NDArray[np.float64]],
    other: Mapping[str, NDArray[np.float64]],
) -> list[SampleRecord]:
    """Return two computations of the same answers as records, for those samples whose names both have."""
    return [
        SampleRecord(sample.sample, sample.kind, sample.prompt_tokens, one[sample.sample], other[sample.sample])
        for sample in samples
        if sample.sample in one and sample.sample in other
    ]


def held(leg: Sequence[SampleRecord], samples: Sequence[SampleRecord]) -> float:
    """Return the share of the step's difference that lies in answers of which the leg holds `SHARE` or more, answer by
    answer; 0.0 where the leg has none of the step's answers."""
    of_leg = {record.sample: _mean(record) for record in leg}
    known = [(_mean(sample) * len(sample.train_logprobs), sample) for sample in samples if sample.sample in of_leg]
    whole = sum(size for size, _ in known)
    here = sum(size for size, sample in known if of_leg[sample.sample] >= SHARE * _mean(sample))
    return here / whole if whole > 0 else 0.0


def _mean(record: SampleRecord) -> float:
    return mean_abs(record.train_logprobs - record.rollout_logprobs)
