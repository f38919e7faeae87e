"""The unit-mean test: the mean of exp(d) over tokens that a policy sampled is 1, whatever the trainer's weights are.

Where the engine's logprobs are those of the distribution that sampled, E[exp(d)] is the sum of the trainer's
probabilities over that distribution's support. Less than 1: support was lost, or the numbers are not that policy's.
More: rows or positions do not belong together. 1: two proper policies, however far apart.
"""

import math
from dataclasses import dataclass

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.posted.step import Array, PostedStep

LARGEST = math.log(20)
"""The d above which a token counts as this much: a few tokens must not carry the mean."""
ONE_SIDED = 0.3
"""How much more of the difference lies below zero than above, as a share, where support was lost."""
BEYOND = 2.0
"""How many times the noise's mean abs d a token is off at least, where few tokens lost support: the noise of all others
hides them in a sum."""
BEYOND_SIDED = 0.6
"""The value of `ONE_SIDED` for these tokens alone."""
FAR = 20.0
"""How many times the noise's mean abs d a token is off where no rounding can be the reason."""
ABOVE, ABOVE_OF_FAR, ABOVE_OF_ALL = 2, 0.005, 0.002
"""How many tokens that far above zero, what share of all far ones and of the difference below zero, speak against lost
support, which makes no token likelier at the trainer. A trainer that has lost its way has a few such tokens."""
FEW = 0.4
"""The largest share of the tokens that carry the loss at which it is said to be that of a few positions."""


@dataclass(frozen=True)
class UnitMean:
    """The mean of exp(d) and how sure it is.

    `excess` is the mean of exp(d) over judged tokens, less 1; `error` its standard error over answers, whose tokens are
    not independent; `answers` how many answers hold a judged token. `capped` is what the cap took from the mean.
    """

    excess: float
    error: float
    answers: int
    capped: float

    @property
    def t(self) -> float:
        """The excess in standard errors; 0.0 where there are not two answers."""
        return self.excess / self.error if self.error > 0 else 0.0

    def is_beyond(self, tolerance: float) -> bool:
        """Return whether the mean is off by more than `tolerance`. A fall that the cap could explain does not count."""
        return self.excess > tolerance or self.excess + self.capped < -tolerance


def support(step: PostedStep, found: UnitMean, noise: float) -> Finding:
    """Check whether the engine sampled from part of the vocabulary: then d is the log of the mass that its support
    holds, token by token, and above zero by noise alone. `noise` is the mean abs d of two correct computations."""
    above, below = _sides(step.d, 0.0)
    lopsided = _lopsided(above, below)
    beyond = _lopsided(*_sides(step.d, BEYOND * noise))
    over, under = step.d[step.d > FAR * noise], int((step.d < -FAR * noise).sum())
    contradicted = len(over) >= ABOVE and len(over) > ABOVE_OF_FAR * under and float(over.sum()) > ABOVE_OF_ALL * below
    numbers = {
        "unit_mean": 1 + found.excess,
        "t": found.t,
        "one_sided": lopsided,
        "far_above": float(len(over)),
        "far_below": float(under),
        "abs_diff_mean": step.size,
    }
    if found.excess >= 0 or contradicted or (lopsided < ONE_SIDED and beyond < BEYOND_SIDED):
        return Finding(Check.SUPPORT, "clear", "d has both signs: no support was lost", numbers=numbers)
    share = float((step.d < -BEYOND * noise).sum()) / step.tokens
    what = "top-p, top-k, min-p, banned tokens, guided decoding"
    if share <= FEW and under:
        what = f"guided decoding or banned tokens, at {share:.1%} of the tokens; or top-p, top-k, min-p"
    return Finding(
        Check.SUPPORT,
        "explains",
        f"the trainer gives the sampled tokens {-found.excess:.1%} less probability than a policy's own samples have, "
        f"and {(1 + max(lopsided, beyond)) / 2:.0%} of the difference lies on one side: the engine sampled from part "
        f"of the vocabulary ({what}) and normalised over it; switch that off, or give the trainer the same cut",
        Cause.SAMPLING_SUPPORT,
        numbers,
    )


def _sides(d: Array, least: float) -> tuple[float, float]:
    """Return the sums of d above zero and below, of tokens that are off by more than `least`."""
    return float(d[d > least].sum()), float(-d[d < -least].sum())


def _lopsided(above: float, below: float) -> float:
    return (below - above) / (below + above) if below + above > 0 else 0.0
