"""Checks of the logprobs themselves: is the one side the other, shifted, tempered or cut?"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.evidence import Check, Finding, SampleEvidence, mean_abs
from omni_rl.consistency.bands import Bands

Array = NDArray[np.float64]
Rescore = Callable[[float], Sequence[Array]]
"""The trainer's logprobs of each sample, were it sampled at another temperature."""

FEWEST_TOKENS = 16
EXPLAINED = 0.2
"""What is left of the difference, at most, once a hypothesis that explains it is applied."""
TEMPERATURES = (0.1, 10.0)
TRIES = 14
"""Of a golden section over the logarithm of TEMPERATURES: to 1 %."""
GOLDEN = (np.sqrt(5) - 1) / 2
ONE_SIDED = 0.02
"""Share of tokens that may lie on the wrong side of a one-sided difference."""
STRAIGHT = 0.8
"""Share of the difference that may be left beside a straight line, for a temperature to be looked for."""
LOPSIDED = 1.3
"""How much larger mean abs d may be than the mean of -d: what lies above zero is rounding."""
LEAST_MASS = 0.05
"""Of the distribution, that a cut support still holds."""


def token_shift(samples: Sequence[SampleEvidence]) -> Finding:
    """Whether one side's logprobs are the other's of the token before, or after."""
    unshifted = mean_abs(np.concatenate([*(sample.d for sample in samples), np.empty(0)]))
    left: dict[int, float] = {}
    for by in (1, -1):
        pairs = [_shifted(sample, by) for sample in samples]
        d = np.concatenate([*pairs, np.empty(0)])
        left[by] = mean_abs(d) if len(d) >= FEWEST_TOKENS else np.inf
    by = min(left, key=lambda shift: left[shift])
    numbers = {"abs_diff_mean": unshifted, "abs_diff_mean_shifted": left[by], "shift": by}
    if not left[by] <= EXPLAINED * unshifted:
        return Finding(Check.TOKEN_SHIFT, "clear", "no shift by a token explains it", numbers=_finite(numbers))
    return Finding(
        Check.TOKEN_SHIFT,
        "explains",
        f"the rollout's logprobs are those of the token {'before' if by == 1 else 'after'}: shifted by one, the mean "
        f"abs d falls from {unshifted:.2g} to {left[by]:.2g}",
        Cause.TOKEN_SHIFT,
        numbers,
    )


def _shifted(sample: SampleEvidence, by: int) -> Array:
    rollout, train = sample.record.rollout_logprobs, sample.record.train_logprobs
    return rollout[1:] - train[:-1] if by == 1 else rollout[:-1] - train[1:]


def temperature(samples: Sequence[SampleEvidence], rescore: Rescore, bands: Bands) -> Finding:
    """Whether the trainer at another temperature gives what the rollout reported."""
    reported = np.concatenate([sample.record.rollout_logprobs for sample in samples])
    asked = samples[0].temperature
    before = mean_abs(np.concatenate([sample.d for sample in samples]))

    def left(at: float) -> float:
        found = mean_abs(np.concatenate(list(rescore(at))) - reported)
        return found if np.isfinite(found) else np.inf

    at, best = (1.0, left(1.0)) if asked != 1.0 else (asked, before)
    # A fit takes as many scorings as TRIES; what a straight line leaves unexplained, no temperature explains.
    if not best <= _enough(before, bands) and _unexplained(samples) <= STRAIGHT * before:
        at, best = _minimum(left)
    numbers = {"abs_diff_mean": before, "abs_diff_mean_at": best, "asked": asked, "fits": at}
    if not best <= _enough(before, bands):
        return Finding(Check.TEMPERATURE, "clear", "no temperature explains it", numbers=_finite(numbers))
    raw = ", the raw ones" if at == 1.0 else ""
    return Finding(
        Check.TEMPERATURE,
        "explains",
        f"the rollout's logprobs are those at temperature {at:.3g}{raw}, but it was asked for {asked:g}: there the "
        f"mean abs d falls from {before:.2g} to {best:.2g}",
        Cause.LOGPROB_POSTPROCESSING,
        numbers,
    )


def _unexplained(samples: Sequence[SampleEvidence]) -> float:
    """Mean abs distance of the rollout's logprobs to the best straight line over the trainer's."""
    rollout = np.concatenate([sample.record.rollout_logprobs for sample in samples])
    train = np.concatenate([sample.record.train_logprobs for sample in samples])
    known = np.isfinite(rollout) & np.isfinite(train)
    if known.sum() < FEWEST_TOKENS:
        return np.inf
    line = np.polynomial.Polynomial.fit(train[known], rollout[known], 1)
    return mean_abs(rollout[known] - line(train[known]))


def _enough(before: float, bands: Bands) -> float:
    """What may be left: noise, if that is much less than what there was."""
    return min(max(bands.mean, EXPLAINED / 10 * before), EXPLAINED * before)


def _minimum(cost: Callable[[float], float]) -> tuple[float, float]:
    """Golden section over the logarithm of the temperature."""
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


def support(samples: Sequence[SampleEvidence], bands: Bands) -> Finding:
    """Whether the rollout normalised over some of the vocabulary (top-k, top-p): then d is the log of the mass that it
    kept, token by token, and never above zero."""
    d = np.concatenate([*(sample.d for sample in samples), np.empty(0)])
    above = float((d > bands.token).mean()) if len(d) else 0.0
    numbers = {"d_mean": float(d.mean()) if len(d) else 0.0, "d_min": float(d.min(initial=0.0)), "share_above": above}
    one_sided = (
        len(d) >= FEWEST_TOKENS
        and above <= ONE_SIDED
        and -np.inf < np.log(LEAST_MASS) <= numbers["d_min"]
        and numbers["d_mean"] < -bands.mean
        and mean_abs(d) <= LOPSIDED * -numbers["d_mean"]
    )
    if not one_sided:
        return Finding(Check.SUPPORT, "clear", "d has both signs: no cut support", numbers=_finite(numbers))
    return Finding(
        Check.SUPPORT,
        "explains",
        f"no token has a larger logprob at the trainer, and {-numbers['d_mean']:.2g} are missing in the mean: the "
        f"rollout normalised over part of the vocabulary, as top-k and top-p do (down to "
        f"{np.exp(numbers['d_min']):.2f} of the mass)",
        Cause.SAMPLING_SUPPORT,
        numbers,
    )


def _finite(numbers: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}
