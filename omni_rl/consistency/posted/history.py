"""What a run's earlier steps add to a step's verdict: small biases that stay, differences that grow, and the noise of
clean steps.

All tests of a run share one rate of false alarms, `FALSE_ALARMS`: half of it goes to the steps, of which step k gets a
share of 1 / k^2 (their sum is pi^2 / 6) that its tests divide among them, and half to the sum over steps, which is
tested by a bound that holds at every step at once: the normal mixture of Robbins (1970), as in Howard et al. (2021),
eq. 14.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.posted.support import UnitMean

FALSE_ALARMS = 1e-3
"""The probability that a run without a fault, however long, is ever said to have a bias."""
ANSWERS = 8
"""The fewest answers whose scatter says how sure their mean is."""
TIGHTEST = 16
"""The number of steps after which the bound on their sum is tightest."""
KEPT = 32
"""The number of latest steps whose mean abs d is stored."""
GROWING = 5
"""The fewest steps over which a growth is found."""
GROWN = 3.0
"""How many times the smallest mean abs d of these steps the latest is, at least."""
ERRORS = 6.0
"""How many standard errors lie between the smallest and the latest, at least."""
ORDERED = 0.9
"""The smallest rank correlation of size and step at which the size grows."""
WIDER = 2.0
"""How many times the mean of clean steps a clean step, or a part of one, may be off."""
CLEAN = 8
"""How many clean steps it takes before their noise stands for that of the dtype."""


@dataclass(frozen=True)
class History:
    """What is known of the earlier steps of one attempt.

    `looks` counts the steps that were tested so far (older ledgers count tests, which are more). `excess` and
    `variance` are sums over the clean steps, of the excess of exp(d) in tokens and of its squared error; `tokens`
    counts the tokens of these steps; `scale` is the variance at which the bound on the sum is tightest, which the first
    of them sets. `sizes` has the mean abs d of the latest steps with its standard error, oldest first. `clean` is the
    mean abs d over the clean steps, and `clean_steps` how many there were.
    """

    looks: int = 0
    excess: float = 0.0
    variance: float = 0.0
    tokens: int = 0
    scale: float = 0.0
    sizes: tuple[tuple[float, float], ...] = ()
    clean: float = 0.0
    clean_steps: int = 0

    def after(self, size: tuple[float, float], mean: UnitMean | None, tokens: int, *, clean: bool) -> "History":
        """Return the history with one more step.

        The step is given by its mean abs d with the standard error, its unit mean (None: none that counts), and its
        judged tokens. A step that was not clean leaves the noise and the sums as they are: what was reported of it once
        is not reported of every later step. A step that is off by no more than a bias that stays is clean.
        """
        found = replace(self, looks=self.looks + (tokens > 0), sizes=(*self.sizes, size)[-KEPT:])
        if not clean or not tokens:
            return found
        found = replace(
            found, clean=self.clean + (size[0] - self.clean) / (self.clean_steps + 1), clean_steps=self.clean_steps + 1
        )
        if mean is None or mean.answers < ANSWERS:
            return found
        return replace(
            found,
            excess=self.excess + mean.excess * tokens,
            variance=self.variance + (mean.error * tokens) ** 2,
            tokens=self.tokens + tokens,
            scale=self.scale or TIGHTEST * (mean.error * tokens) ** 2,
        )

    def noise(self, of_dtype: float) -> float:
        """Return the mean abs d up to which a step is as close as correct computations are: twice that of the run's own
        clean steps once there are enough of them, at most the dtype's."""
        return min(WIDER * self.clean, of_dtype) if self.clean_steps >= CLEAN else of_dtype

    def significant(self, t: float, answers: int, tests: int) -> bool:
        """Return whether `t` standard errors, over `answers`, are more than chance makes of one of a step's `tests`."""
        return answers >= ANSWERS and two_sided(t, answers - 1) < self.share / tests

    @property
    def share(self) -> float:
        """The probability of a false alarm that the tests of the next step may have, all of them together."""
        return FALSE_ALARMS / 2 * 6 / (math.pi * (self.looks + 1)) ** 2

    def staying(self, tolerance: float) -> float | None:
        """Return the mean excess of all steps, if it is more than chance and `tolerance`; None otherwise."""
        if self.scale <= 0:
            return None
        alpha = FALSE_ALARMS / 2
        whole = self.variance + self.scale
        bound = math.sqrt(whole * math.log(whole / (self.scale * alpha**2)))
        if abs(self.excess) - tolerance * self.tokens <= bound:
            return None
        return self.excess / self.tokens

    def grows(self, size: float, error: float) -> tuple[float, int] | None:
        """Return the smallest mean abs d and how many steps ago it was, if the difference has grown since then from
        step to step.

        `size` and `error` are the mean abs d of the latest step and its standard error. None where it has not grown.
        """
        sizes = np.array([*(value for value, _ in self.sizes), size])
        first = int(sizes.argmin())
        rising = sizes[first:]
        if len(rising) < GROWING or rising[-1] < GROWN * rising[0] or rising.argmax() != len(rising) - 1:
            return None
        if size - rising[0] < ERRORS * math.hypot(error, self.sizes[first][1]) or _ordered(rising) < ORDERED:
            return None
        return float(rising[0]), len(rising) - 1


def two_sided(t: float, freedom: int) -> float:
    """Return the probability of a Student's t beyond `t` on either side, by Wallace's (1959) normal approximation; 1.0
    where there is no degree of freedom."""
    if freedom < 1 or not math.isfinite(t):
        return 1.0
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.erfc(z / math.sqrt(2))


def _ordered(values: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation of values with their order."""
    ranks = np.argsort(np.argsort(values))
    return float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])
