"""Finds single answers that are off among many that are fine: another answer's logprobs, a mask that one row missed.

A mean over thousands of answers does not show one of them, so each is tested by itself, by bets. Of processed logprobs,
what is expected of exp(d) is 1 at every token, whatever came before, so that a player who stakes shares of a fortune of
1 on a rise or on a fall expects to keep it; a fortune of F is chance with a probability of 1 / F at most (Ville 1939),
however the noise is spread, and wherever the answer stops.
"""

import math
from dataclasses import dataclass

import numpy as np

from omni_rl.consistency.evidence import Check, Finding, named
from omni_rl.consistency.limits import FEWEST
from omni_rl.consistency.posted.places import Places
from omni_rl.consistency.posted.step import Array, PostedStep
from omni_rl.counting import agreeing, counted

STAKES = (0.02, 0.1, 0.3)
"""The shares of the fortune that are set on a rise, and on a fall, of exp(d): all of them at once, as nobody knows how
far exp(d) is off."""
HIGHEST = 4.0
"""The exp(d) above which a token counts as this much where a fall is bet on: a stake must not lose more than there
is."""
CANDIDATES = 16
"""How many answers are tested, of those whose exp(d) is furthest off and of those that are furthest apart. The rate of
false alarms is corrected for all answers."""
SMALL = 16_384
"""The most tokens of a step that are bet on as a whole: of more, the scatter over answers tells."""
FEW = 0.1
"""The share of the answers above which they are no outliers: the step's own figures show it."""


@dataclass(frozen=True)
class Outliers:
    """The numbers of the answers that are off by themselves, the furthest first, and the sentence that says so."""

    answers: tuple[int, ...]
    sentence: str
    numbers: dict[str, float]

    def finding(self, step: PostedStep) -> Finding:
        names = tuple(step.samples[n] for n in self.answers)
        return Finding(Check.ANSWERS, "suspicious", self.sentence, numbers=self.numbers, samples=names[:8])


def biased_answers(places: Places, tolerance: float, share: float) -> Outliers | None:
    """Return the answers whose mean of exp(d) is off by more than `tolerance` and than chance makes of one answer of
    the step with a probability of `share`; None where there is none."""
    step = places.step
    if not step.tokens:
        return None
    ratios, sizes, tokens = places.of_answers
    held = np.maximum(tokens, 1)
    chosen = {int(n) for score in (np.abs(ratios) / np.sqrt(held), sizes / held) for n in _highest(score)}
    capped, needed = _capped(step), math.log(len(step) / share)
    found = {}
    for n in chosen:
        of = slice(int(step.offsets[n]), int(step.offsets[n + 1]))
        if log_fortune(step.d[of][step.judged[of]], tolerance, capped) >= needed:
            found[n] = float(ratios[n] / held[n])
    if not found:
        return None
    answers = sorted(found, key=lambda n: -abs(found[n]))
    first = answers[0]
    side = "less" if found[first] < 0 else "more"
    return Outliers(
        tuple(answers),
        f"{len(answers)} of {counted(len(step), 'answer')} by {agreeing(len(answers), 'itself', 'themselves')} "
        f"({named([step.samples[n] for n in answers])}): the trainer gives the "
        f"{counted(int(tokens[first]), 'token')} of {step.samples[first]} {abs(found[first]):.2%} {side} probability "
        "than a policy's own samples have",
        {"answers": float(len(answers)), "unit_mean": 1 + found[first]},
    )


def is_biased(step: PostedStep, tolerance: float, share: float) -> bool:
    """Return whether all answers of a small step together are off by more than chance makes of it with a probability of
    `share`: by bets, where the scatter of a handful of answers says too little."""
    return 0 < step.tokens <= SMALL and log_fortune(step.d[step.judged], tolerance, _capped(step)) >= -math.log(share)


def _capped(step: PostedStep) -> float:
    """Return by how much `HIGHEST` lowers the mean of exp(d)."""
    over = step.d[step.d > math.log(HIGHEST)]
    return float((np.exp(over) - HIGHEST).sum()) / max(step.tokens, 1)


def log_fortune(d: Array, tolerance: float, capped: float) -> float:
    """Return the logarithm of what bets on the tokens' exp(d), one after the other, make of 1.

    `tolerance` is how much the mean may be off by rounding; `capped` is by how much `HIGHEST` lowers it.
    """
    ratio = np.exp(d)
    bets = [ratio - 1 - tolerance]
    if tolerance + capped < 1 / max(STAKES) - (HIGHEST - 1):  # otherwise a fall is undecided
        bets.append(1 - np.minimum(ratio, HIGHEST) - tolerance - capped)
    logs = np.log1p(np.multiply.outer(STAKES, bets)).sum(axis=-1)
    top = float(logs.max())
    return top + math.log(float(np.exp(logs - top).sum()) / (2 * len(STAKES)))


def distant_answers(places: Places, errors: Array, limit: float) -> Outliers | None:
    """Return the answers whose mean abs d is over `limit` even without their furthest token.

    `errors` [N] is the mean exp(abs d) of each answer without the tokens that router flips leave out, which must be
    over the limit too. None where there is no such answer, or where there are too many to be outliers.
    """
    step, tokens = places.step, places.tokens.sum(1)
    sizes = places.sizes.sum(1) / np.maximum(tokens, 1)
    over = np.flatnonzero((sizes > limit) & (errors > 1 + limit) & (tokens >= FEWEST))
    if len(over) > FEW * len(step):
        return None
    furthest = {int(n): float(np.abs(step.d[step.offsets[n] : step.offsets[n + 1]]).max()) for n in over}
    answers = [n for n in furthest if sizes[n] - furthest[n] / tokens[n] > limit]
    if not answers:
        return None
    answers.sort(key=lambda n: -sizes[n])
    first, median = answers[0], float(np.median(sizes[tokens > 0]))
    return Outliers(
        tuple(answers),
        f"{len(answers)} of {counted(len(step), 'answer')} by {agreeing(len(answers), 'itself', 'themselves')} "
        f"({named([step.samples[n] for n in answers])}): the mean "
        f"abs d of {step.samples[first]} is {sizes[first]:.2g}, that of half of all answers at most {median:.2g}",
        {"answers": float(len(answers)), "abs_diff_mean": float(sizes[first]), "median": median},
    )


def _highest(values: Array) -> list[int]:
    """Return the indices of the `CANDIDATES` highest values, the highest first."""
    count = min(CANDIDATES, len(values))
    found = np.argpartition(-values, count - 1)[:count] if count else np.empty(0, np.int64)
    places: list[int] = found[np.argsort(-values[found], kind="stable")].tolist()
    return places
