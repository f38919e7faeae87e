"""Computes the unit mean and the size of a step by kind, by position and by answer, from one pass over its tokens.

Shapes: N answers, T sampled tokens of all of them, B bins of positions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from omni_rl.consistency.cells import position_bins
from omni_rl.consistency.posted.step import Array, Index, Mask, PostedStep
from omni_rl.consistency.posted.support import LARGEST, UnitMean
from omni_rl.kinds import OVERALL
from omni_rl.once import once

LAST = "the last tokens"
"""The subset of each answer's last token, unless it is the first, too: its size is tested, and not its unit mean. Which
token is the last depends on what was sampled there (an EOS), and of tokens that were chosen by what they are the mean
of exp(d) is not 1."""


@dataclass(frozen=True)
class Size:
    """The mean abs d of a subset and its standard error over `answers` answers; infinite where there are not two."""

    mean: float
    error: float
    answers: int

    def beyond(self, limit: float) -> float:
        """Return by how many standard errors the mean is over `limit`; many where all answers are equally far apart."""
        return (self.mean - limit) / max(self.error, 1e-9 * self.mean)


@dataclass(frozen=True)
class Places:
    """Sums over the judged tokens of each answer in each bin of positions.

    `bins` has the range [first, last) of each bin; the first token has one by itself. `ratios` float64 [N, B] are the
    sums of exp(d) - 1, where d counts `LARGEST` at most, and `sizes` float64 [N, B] those of abs d. `tokens` int64 [N,
    B] counts the tokens. `capped` float64 [N] is what the cap took from each answer's sum.
    """

    step: PostedStep
    bins: list[tuple[int, int]]
    ratios: Array
    sizes: Array
    tokens: Index
    capped: Array

    @classmethod
    def of(cls, step: PostedStep) -> "Places":
        lengths = np.diff(step.offsets)
        bins = [(0, 1), (1, 8), *position_bins(int(lengths.max(initial=0)))[1:]]
        ends = np.array([0, *(end for _, end in bins)], np.int64)
        bounds = step.offsets[:-1, None] + np.minimum(lengths[:, None], ends)
        counts = np.diff(bounds)
        filled = counts > 0
        starts = bounds[:, :-1][filled]

        def sums(values: Array | Mask) -> Array:
            found = np.zeros(counts.shape)
            if len(starts):
                found[filled] = np.add.reduceat(values, starts, dtype=np.float64)
            return found

        ratios = np.expm1(np.minimum(step.d, LARGEST))  # 0 where d is, as at tokens that are not judged
        over = np.flatnonzero(step.d > LARGEST)
        capped = np.bincount(step.answer[over], np.exp(step.d[over]) - math.exp(LARGEST), len(step)).astype(np.float64)
        tokens = counts if step.judged.all() else sums(step.judged).astype(np.int64)
        return cls(step, bins, sums(ratios), sums(np.abs(step.d)), tokens, capped)

    @once
    def unit_means(self) -> dict[str, UnitMean]:
        """The unit mean of all tokens, of each kind and of each bin of positions; of kinds and of bins only where there
        are several."""
        ratios, tokens = self.ratios.sum(1), self.tokens.sum(1)
        found = {OVERALL: _unit_mean(ratios, tokens, self.capped)}
        kinds = np.array(self.step.kinds)
        names = dict.fromkeys(self.step.kinds)
        for kind in names if len(names) > 1 else ():
            of = kinds == kind
            found[kind] = _unit_mean(ratios[of], tokens[of], self.capped[of])
        several = int((self.tokens.sum(0) > 0).sum()) > 1
        for number, name in enumerate(self._names if several else ()):
            found[name] = _unit_mean(self.ratios[:, number], self.tokens[:, number], self.capped)
        return found

    @once
    def positions(self) -> Mapping[str, Size]:
        """The size of each bin of positions, and of the answers' last tokens."""
        found = {
            name: _size(self.sizes[:, number], self.tokens[:, number])
            for number, name in enumerate(self._names)
            if self.tokens[:, number].any()
        }
        ends = self.step.offsets[1:][np.diff(self.step.offsets) > 1] - 1
        ends = ends[self.step.judged[ends]]
        if len(ends):
            found[LAST] = _size(np.abs(self.step.d[ends]), np.ones(len(ends), np.int64))
        return found

    @once
    def size(self) -> Size:
        """The size of all tokens."""
        return _size(self.sizes.sum(1), self.tokens.sum(1))

    @once
    def of_answers(self) -> tuple[Array, Array, Index]:
        """The sums of exp(d) - 1 and of abs d of each answer, and its judged tokens; [N] each."""
        return self.ratios.sum(1), self.sizes.sum(1), self.tokens.sum(1)

    @property
    def _names(self) -> list[str]:
        return ["the first tokens", *(f"tokens {first} to {end - 1}" for first, end in self.bins[1:])]

    def inside(self, subset: str) -> Mask:
        """Return which tokens [T] are of a subset of `unit_means` or `positions`."""
        if subset == OVERALL:
            return np.ones(len(self.step.rollout), np.bool_)
        if subset in self.step.kinds:
            return self.step.of_answers(np.flatnonzero(np.array(self.step.kinds) == subset))
        place = np.arange(len(self.step.rollout)) - self.step.offsets[self.step.answer]
        if subset == LAST:
            found: Mask = (place > 0) & (place == np.diff(self.step.offsets)[self.step.answer] - 1)
            return found
        first, end = self.bins[self._names.index(subset)]
        inside: Mask = (place >= first) & (place < end)
        return inside


def _unit_mean(ratios: Array, tokens: Index, capped: Array) -> UnitMean:
    excess, error, answers = _ratio(ratios, tokens)
    return UnitMean(excess, error if math.isfinite(error) else 0.0, answers, float(capped.sum()) / max(tokens.sum(), 1))


def _size(sizes: Array, tokens: Index) -> Size:
    return Size(*_ratio(sizes, tokens))


def _ratio(sums: Array, tokens: Index) -> tuple[float, float, int]:
    """Return the mean of sums over tokens, its standard error, and how many answers have a token. Tokens of one answer
    are not independent, and answers with more tokens weigh more."""
    sums, tokens = sums[tokens > 0], tokens[tokens > 0]
    count, whole = len(sums), int(tokens.sum())
    if not whole:
        return 0.0, math.inf, 0
    mean = float(sums.sum()) / whole
    if count < 2:
        return mean, math.inf, count
    return mean, math.sqrt(count / (count - 1) * float(((sums - mean * tokens) ** 2).sum())) / whole, count
