"""Compares what a side posted with what its own logits give: another temperature, a penalty, a cut support, rounded
numbers, another answer's.

Shapes: T sampled tokens of one answer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.parting import SHARE, apart, pairs
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.evidence import Check, Finding, mean_abs
from omni_rl.consistency.left_out import TIES, kept
from omni_rl.consistency.records import SampleRecord
from omni_rl.counting import agreeing, counted

Array = NDArray[np.float64]
Values = Mapping[str, Array]
"""Logprobs float64 [T] of the sampled tokens, by the name of the sample."""
Rescore = Callable[[float, Sequence[str] | None], Values]
"""Gives the logprobs that the trainer's logits have at a temperature, for the samples of these names; None: for all."""
Side = Literal["engine", "trainer"]

LEFT = 0.4
"""The share of the difference that may be left once a hypothesis about it is applied."""
TAIL = 0.05
"""The share of the tokens, those on which the own logits are furthest from the other side, that rounding may have far
off: router flips make a mean abs d of 0.09 in bfloat16 of what is 0.005 in the median."""
BESIDE = 0.15
"""The share of the other tokens' difference that may be left once a side's own logits stand in for what it posted."""
SEVERAL = 3
"""The number of far tokens below which they may be accidents of the router."""
MOST = 0.7
"""The share of what far tokens are off by that has to lie where a side posted something else."""
TEMPERATURES = (0.1, 10.0)
TRIES = 14
"""Steps of a golden section over the logarithm of TEMPERATURES, which find a temperature to 1 %."""
GOLDEN = (np.sqrt(5) - 1) / 2
ONE_SIDED = 0.02
"""The share of tokens that may lie on the wrong side of a one-sided difference."""
LEANING = 0.2
"""The mean of signed differences that noise may have, as a share of its mean abs d: most of it cancels."""
FITTED = 2
"""The number of answers that a temperature is fitted to."""
FAR = 4.0
"""How many times the noise's mean abs d a token must be off to count as off."""
FEW = 8
"""The number of tokens that are off below which their correlation says nothing."""
TOGETHER = 0.5
"""The correlation with the own logits' values below which posted ones are another answer's."""
ONE_WAY = 0.8
"""The mean of signed differences, as a share of their mean abs, above which posted values are no other answer's: 0.15
in the median and 0.6 in 95 % of these, 0.89 to 0.95 for weights so far off that they hardly correlate."""
ROUNDED = 0.1
"""The share of the difference that may be left where posted values are the own ones in another dtype."""
UNRELATED = 0.7
"""How far posted values lie from the own logits' at least, as a share of how far these lie from each other, if they are
another answer's."""


def reported(
    samples: Sequence[SampleRecord], own: Values, side: Side, asked: float, rescore: Rescore | None, bands: Bands
) -> Finding:
    """Check whether a side posted something else than its own logits give, and that is all there is between the sides.

    `own` is what the side's logits give for the same tokens, or the first of them, at the temperature that was `asked`
    for. `rescore` gives what the trainer's logits do at another one; None: no temperature is looked for.
    """
    check = Check.ENGINE_REPORTED if side == "engine" else Check.TRAINER_REPORTED
    known = [sample for sample in samples if sample.sample in own]
    said, other = (
        {sample.sample: _posted(sample, of)[: len(own[sample.sample])] for sample in known}
        for of in (side, _other(side))
    )
    step, wrong, left = (
        apart(known, bands),
        apart(pairs(known, own, said), bands),
        apart(pairs(known, own, other), bands),
    )
    numbers = _finite({"abs_diff_mean": step, "reported_mean": wrong, "left": left, "asked": asked})
    is_much = step > bands.mean and bands.mean < wrong < np.inf and wrong >= SHARE * step
    is_all = is_much and (left <= enough(step, bands) or _is_all_but_noise(known, own, said, other))
    if not is_all and not _is_what_is_far(known, own, said, other, bands):
        return Finding(check, "clear", f"the {side} posted what its logits give, up to {wrong:.2g}", numbers=numbers)
    cause, what, found = _reading(known, own, said, side, rescore, bands)
    return Finding(
        check,
        "explains",
        f"the {side} posted other logprobs than its own logits give at temperature {asked:g}: {what}; with those that "
        f"they give, the mean abs d falls from {step:.2g} to {left:.2g}",
        cause,
        {**numbers, **found},
        samples=tuple(
            sample.sample for sample in known if not mean_abs(said[sample.sample] - own[sample.sample]) <= bands.mean
        ),
    )


def _is_all_but_noise(samples: Sequence[SampleRecord], own: Values, said: Values, other: Values) -> bool:
    """Return whether little is left of the difference, but for the few tokens that rounding has far off."""
    mine, posted, against = _joined(samples, own, said, other)
    left, before = np.abs(mine - against), np.abs(posted - against)
    most = np.argsort(left, kind="stable")[: int((1 - TAIL) * len(left))]
    return mean_abs(left[most]) <= BESIDE * mean_abs(before[most])


def _is_what_is_far(samples: Sequence[SampleRecord], own: Values, said: Values, other: Values, bands: Bands) -> bool:
    """Return whether the tokens that are further off than noise explains are those that a side posted otherwise than
    its own logits give, which agree with the other side there: a few tokens of many need not move a mean."""
    if not samples:
        return False
    counted = np.concatenate([kept(one, TIES[bands.dtype])[: len(own[one.sample])] for one in samples])
    mine, posted, against = _joined(samples, own, said, other)
    off = np.abs(posted - against)
    far = counted & (off > bands.token)
    posted_so = far & (np.abs(posted - mine) > bands.token) & (np.abs(mine - against) <= bands.token)
    return int(posted_so.sum()) >= SEVERAL and float(off[posted_so].sum()) >= MOST * float(off[far].sum())


def enough(before: float, bands: Bands) -> float:
    """Return what may be left of a difference that a hypothesis explains: noise, if that is less than what there
    was."""
    return min(max(bands.mean, LEFT / 20 * before), LEFT * before) if np.isfinite(before) else bands.mean


def _reading(
    samples: Sequence[SampleRecord],
    own: Values,
    said: Values,
    side: Side,
    rescore: Rescore | None,
    bands: Bands,
) -> tuple[Cause, str, dict[str, float]]:
    """Return the cause that the posted values show, what they are, in words, and the numbers behind it."""
    mine, theirs = _joined(samples, own, said)
    by = theirs - mine
    if rescore is not None and (fit := _temperature(samples, said, rescore, mean_abs(by), bands)) is not None:
        raw = ", the raw ones" if fit == 1.0 else ""
        return Cause.LOGPROB_POSTPROCESSING, f"they are those at temperature {fit:.3g}{raw}", {"fits": fit}
    noise = FAR * bands.mean
    off = np.abs(by) > noise
    first = np.concatenate([said[sample.sample][:1] - own[sample.sample][:1] for sample in samples])
    below = float((by < -noise).mean())
    # A penalty spares the first token of an answer, before which there is none; a cut does not.
    if side == "engine" and below <= ONE_SIDED and min(by.mean(), first.mean()) > LEANING * bands.mean:
        return (
            Cause.SAMPLING_SUPPORT,
            f"all are larger, by {float(by.mean()):.2g} in the mean, as where top-p, top-k, min-p or a grammar leave "
            "part of the vocabulary",
            {"above_mean": float(by.mean())},
        )
    for dtype, rounded in (("float16", _float16(mine)), ("bfloat16", _bfloat16(mine))):
        if mean_abs(rounded - theirs) <= ROUNDED * mean_abs(by):
            return (
                Cause.ROUNDING,
                f"they were rounded to {dtype} on their way; hand them on as they were computed",
                {},
            )
    wrong = int(off.sum())
    some = f"{wrong} of {counted(len(off), 'token')}"
    if _is_unrelated(mine, theirs, off):
        return (
            Cause.SAMPLE_PAIRING,
            f"{some} {agreeing(wrong, 'has a value that is', 'have values that are')} no function of them: those of "
            "another answer, or of another place",
            {"tokens": float(off.sum())},
        )
    if side == "trainer":
        # Nothing is applied to a trainer's logits but a temperature.
        return (
            Cause.STALE_WEIGHTS,
            f"{some} {agreeing(wrong, 'is', 'are')} off by {mean_abs(by):.2g} in the mean, as those of other "
            "weights than its version names: a snapshot, or a rank that was left behind",
            {"tokens": float(off.sum())},
        )
    return (
        Cause.LOGPROB_POSTPROCESSING,
        f"{some} {agreeing(wrong, 'was', 'were')} changed after the logits, by {mean_abs(by):.2g} in the mean: a "
        "penalty, a bias",
        {"tokens": float(off.sum())},
    )


def _float16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float64)


def _bfloat16(values: Array) -> Array:
    """Round to the nearest bfloat16, the half of the last bit upwards."""
    bits = values.astype(np.float32).view(np.uint32) + np.uint32(0x8000)
    found: Array = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    return found


def _is_unrelated(mine: Array, theirs: Array, off: NDArray[np.bool_]) -> bool:
    """Return whether posted values are no function of the own ones, where they are off: few of them, by their distance;
    more, because they do not correlate. Another answer's are as often higher as lower; other weights' are lower, since
    the answers were not sampled from these."""
    if not off.any():
        return False
    by = theirs[off] - mine[off]
    if len(by) < FEW:
        return mean_abs(by) >= UNRELATED * mean_abs(np.roll(mine, len(mine) // 2 + 1) - mine)
    if abs(float(by.mean())) > ONE_WAY * mean_abs(by):
        return False
    if not np.ptp(mine[off]) or not np.ptp(theirs[off]):
        return True
    return float(np.corrcoef(mine[off], theirs[off])[0, 1]) < TOGETHER


def _temperature(
    samples: Sequence[SampleRecord], said: Values, rescore: Rescore, before: float, bands: Bands
) -> float | None:
    """Return the other temperature at which the logits give what was posted; None if there is none."""

    def left(at: float, of: Sequence[SampleRecord]) -> float:
        found = rescore(at, [sample.sample for sample in of])
        apart = [found[sample.sample][: len(said[sample.sample])] - said[sample.sample] for sample in of]
        mean = mean_abs(np.concatenate(apart))
        return mean if np.isfinite(mean) else np.inf

    if left(1.0, samples) <= enough(before, bands):
        return 1.0
    # Each try is a forward of the trainer: a temperature that fits the furthest answers fits all, or none does.
    furthest = sorted(samples, key=lambda one: -mean_abs(one.train_logprobs - one.rollout_logprobs))[:FITTED]
    at, _ = _minimum(lambda temperature: left(temperature, furthest))
    return at if left(at, samples) <= enough(before, bands) else None


def _minimum(cost: Callable[[float], float]) -> tuple[float, float]:
    """Return the temperature of the smallest cost, by a golden section over its logarithm, and that cost."""
    low, high = np.log(TEMPERATURES)
    inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
    costs = [cost(float(np.exp(at))) for at in inner]
    for _ in range(TRIES - 2):
        if costs[0] <= costs[1]:
            high, inner[1], costs[1] = inner[1], inner[0], costs[0]
            inner[0] = high - GOLDEN * (high - low)
            costs[0] = cost(float(np.exp(inner[0])))
        else:
            low, inner[0], costs[0] = inner[0], inner[1], costs[1]
            inner[1] = low + GOLDEN * (high - low)
            costs[1] = cost(float(np.exp(inner[1])))
    best = int(costs[1] < costs[0])
    return float(np.exp(inner[best])), costs[best]


def _joined(samples: Sequence[SampleRecord], *of: Values) -> list[Array]:
    """Return the values of all samples, one after the other, for each of the mappings."""
    return [np.concatenate([values[sample.sample] for sample in samples]) for values in of]


def _posted(sample: SampleRecord, side: Side) -> Array:
    return sample.rollout_logprobs if side == "engine" else sample.train_logprobs


def _other(side: Side) -> Side:
    return "trainer" if side == "engine" else "engine"


def _finite(numbers: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}
