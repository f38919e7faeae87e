"""What is looked at in every posted step, whether its figures are within their limits or not.

These checks cost a few passes over the step's tokens. What they find raises the step's severity by itself: impossible
values and differences that the records state need no limit, and a biased mean of exp(d) is found at sizes that every
limit in use lets pass.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from omni_rl.consistency.attribution.evidence import Check, Finding
from omni_rl.consistency.limits import Severity, Told
from omni_rl.consistency.posted import proofs, transforms, values
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.step import Array, PostedStep
from omni_rl.consistency.posted.support import UnitMean, unit_mean
from omni_rl.kinds import OVERALL

NOISE: Mapping[str, float] = {"float32": 1e-5, "float16": 1.25e-2, "bfloat16": 0.05, "fp8": 0.1}
"""The mean abs d of two correct computations, at most, by dtype."""
ROUNDING: Mapping[str, float] = {"float32": 3e-6, "float16": 1e-3, "bfloat16": 2e-3, "fp8": 4e-3}
"""What rounding may leave in the mean of exp(d), by dtype: both sides are proper policies up to the last bits of their
log-softmax."""
BIASED = {Severity.PAUSE: 0.5, Severity.MASK: 0.1, Severity.WARN: 0.0}
"""By how much the mean of exp(d) has to be off for a severity, where it is off by more than chance."""
LARGE = 0.5
"""Share of the noise's mean abs d below which a growth is not told: as a policy becomes surer or less sure, so does the
rounding of both sides."""
MANY = 1e-3
"""Share of tokens with an impossible value that stops a run; fewer are masked."""
PATTERN = 8_192
"""Tokens of a step in which a temperature or a penalty is looked for, whatever the step's size: more tell no more."""
HOLES = 0.01
"""Share of counted placeholders that is masked; fewer are told."""


@dataclass(frozen=True)
class Terms:
    """How a run's records are to be read. `noise`: the mean abs d of two correct computations in its dtypes. `lag`: how
    many weight versions the engine may be behind; None: not said. `bias`: what rounding may leave in the mean of
    exp(d)."""

    noise: float
    bias: float
    lag: int | None = None

    @classmethod
    def of(cls, dtype: str, lag: int | None = None) -> "Terms":
        return cls(NOISE[dtype], ROUNDING[dtype], lag)


@dataclass(frozen=True)
class Look:
    """What was found, each with the severity that it asks for; the unit mean by bucket (`overall` and kinds), and how
    many tests were made of it; `error`: the standard error of the step's mean abs d, over answers."""

    found: tuple[tuple[Finding, Severity], ...]
    means: Mapping[str, UnitMean]
    tests: int
    error: float

    @property
    def clean(self) -> bool:
        """Whether the step by itself shows nothing: a bias that stays is one of all steps."""
        return all(finding.check == Check.BIAS for finding, _ in self.found)

    @property
    def told(self) -> tuple[Told, ...]:
        return tuple(Told(finding.sentence, severity) for finding, severity in self.found)


def look(step: PostedStep, terms: Terms, history: History) -> Look:
    """Everything that needs no experiment and no search."""
    # Of raw logprobs, or of answers that were chosen, the mean of exp(d) is not 1, and its sign names nothing.
    means = unit_means(step) if step.logprobs_of == "processed" and not step.filtered else {}
    error = size_error(step)
    found = tuple(_checks(step, terms, history, means, error))
    return Look(found, means, len(means), error)


def _checks(
    step: PostedStep, terms: Terms, history: History, means: Mapping[str, UnitMean], error: float
) -> Iterator[tuple[Finding, Severity]]:
    found = values.nonfinite(step)
    if found.result == "explains":
        yield found, Severity.PAUSE
    found = values.impossible(step)
    if found.result == "explains":
        share = found.numbers["tokens"] / max(step.tokens, 1)
        yield found, Severity.PAUSE if share > MANY else Severity.MASK
    found = values.placeholders(step)
    if found.result == "explains":
        yield found, Severity.MASK if found.numbers["tokens"] > HOLES * step.tokens else Severity.WARN
    some = step.some(PATTERN)
    for found in (transforms.temperature(some), transforms.penalty(some)):
        if found.result == "explains":
            yield found, Severity.WARN
    noise = history.noise(terms.noise)
    for found in (proofs.versions(step, noise, terms.lag), proofs.media(step, noise), proofs.prompt(step, noise)):
        if found.result in ("suspicious", "explains"):
            yield found, Severity.WARN
    for bucket, mean in means.items():
        if abs(mean.excess) > terms.bias and history.significant(mean.t, mean.answers, len(means)):
            yield _biased(bucket, mean), next(s for s, at in BIASED.items() if abs(mean.excess) >= at)
    if (staying := history.staying(terms.bias)) is not None:
        yield _staying(staying, history), Severity.WARN
    if step.size > LARGE * terms.noise and (grown := history.grows(step.size, error)) is not None:
        yield _growing(step, *grown), Severity.WARN


def unit_means(step: PostedStep) -> dict[str, UnitMean]:
    """The unit mean of all tokens, and of each kind where there are several."""
    kinds = dict.fromkeys(step.kinds)
    found = {OVERALL: unit_mean(step)}
    if len(kinds) > 1:
        of = np.array(step.kinds)
        for kind in kinds:
            found[kind] = unit_mean(step.without(~step.of_answers(np.flatnonzero(of == kind))))
    return found


def size_error(step: PostedStep) -> float:
    """The standard error of the step's mean abs d over answers, whose tokens are not independent; infinite where there
    are not two answers."""
    filled = step.lengths > 0
    count = int(filled.sum())
    if count < 2:
        return math.inf
    sums: Array = step.by_answer(np.abs(step.d))[filled]
    apart = sums - step.size * step.lengths[filled]
    return math.sqrt(count / (count - 1) * float((apart**2).sum())) / step.tokens


def _biased(bucket: str, mean: UnitMean) -> Finding:
    side = "less" if mean.excess < 0 else "more"
    return Finding(
        Check.UNIT_MEAN,
        "suspicious",
        f"{bucket}: the trainer gives the sampled tokens {abs(mean.excess):.2%} {side} probability than a policy's own "
        f"samples have ({abs(mean.t):.0f} standard errors over {mean.answers} answers)",
        numbers={"unit_mean": 1 + mean.excess, "error": mean.error, "answers": float(mean.answers)},
    )


def _staying(excess: float, history: History) -> Finding:
    side = "less" if excess < 0 else "more"
    return Finding(
        Check.BIAS,
        "suspicious",
        f"over {history.clean_steps} steps the trainer gives the sampled tokens {abs(excess):.3%} {side} probability "
        "than a policy's own samples have: too little for one step to show, and it stays",
        numbers={"unit_mean": 1 + excess, "steps": float(history.clean_steps)},
    )


def _growing(step: PostedStep, smallest: float, steps: int) -> Finding:
    return Finding(
        Check.GROWTH,
        "suspicious",
        f"the mean abs d has grown with every update, from {smallest:.2g} to {step.size:.2g} in {steps} steps",
        numbers={"smallest": smallest, "abs_diff_mean": step.size, "steps": float(steps)},
    )
