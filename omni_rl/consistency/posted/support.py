"""The unit-mean test: the mean of exp(d) over tokens that a policy sampled is 1, whatever the trainer's weights are.

Where the engine's logprobs are those of the distribution that sampled, E[exp(d)] is the sum of the trainer's
probabilities over that distribution's support. Less than 1: support was lost, or the numbers are not that policy's.
More: rows or positions do not belong together. 1: two proper policies, however far apart.
"""

import math
from dataclasses import dataclass

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.evidence import Check, Finding
from omni_rl.consistency.posted.step import PostedStep

LARGEST = math.log(20)
"""d above which a token counts as this much: a few tokens must not carry the mean."""
ONE_SIDED = 0.3
"""How much more of the difference lies below zero than above, as a share, where support was lost."""


@dataclass(frozen=True)
class UnitMean:
    """`excess`: the mean of exp(d) over judged tokens, less 1; `error` its standard error over answers, whose tokens
    are not independent; `answers` how many hold a judged token. `capped`: what the cap took from the mean."""

    excess: float
    error: float
    answers: int
    capped: float

    @property
    def t(self) -> float:
        """The excess in standard errors; 0.0 where there are not two answers."""
        return self.excess / self.error if self.error > 0 else 0.0

    def is_beyond(self, tolerance: float) -> bool:
        """Whether it is off by more than `tolerance`. A fall that the cap could explain is none."""
        return self.excess > tolerance or self.excess + self.capped < -tolerance


def support(step: PostedStep, found: UnitMean) -> Finding:
    """Whether the engine sampled from part of the vocabulary: then d is the log of the mass that its support holds,
    token by token, and above zero by noise alone."""
    above = float(np.maximum(step.d, 0.0).sum())
    below = float(np.maximum(-step.d, 0.0).sum())
    lopsided = (below - above) / (below + above) if below + above > 0 else 0.0
    numbers = {"unit_mean": 1 + found.excess, "t": found.t, "one_sided": lopsided, "abs_diff_mean": step.size}
    if lopsided < ONE_SIDED or found.excess >= 0:
        return Finding(Check.SUPPORT, "clear", "d has both signs: no support was lost", numbers=numbers)
    return Finding(
        Check.SUPPORT,
        "explains",
        f"the trainer gives the sampled tokens {-found.excess:.1%} less probability than a policy's own samples have, "
        f"and {(1 + lopsided) / 2:.0%} of the difference lies on one side: the engine sampled from part of the "
        "vocabulary (top-p, top-k, min-p, guided decoding) and normalised over it; switch that off, or give the "
        "trainer the same cut",
        Cause.SAMPLING_SUPPORT,
        numbers,
    )
