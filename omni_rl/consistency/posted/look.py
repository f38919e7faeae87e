"""The checks of every posted step, whether its figures are within their limits or not.

These checks cost a few passes over the step's tokens. What they find raises the step's severity by itself: impossible
values and differences that the records state need no limit, and a biased mean of exp(d) is found at sizes that every
limit in use lets pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.limits import Concern, Severity
from omni_rl.consistency.posted import proofs, transforms, values
from omni_rl.consistency.posted.history import ANSWERS, History
from omni_rl.consistency.posted.outliers import biased_answers, distant_answers, is_biased
from omni_rl.consistency.posted.places import Places, Size
from omni_rl.consistency.posted.step import Array, PostedStep
from omni_rl.consistency.posted.support import UnitMean
from omni_rl.consistency.yardstick import NOISE, Yardstick
from omni_rl.counting import counted
from omni_rl.kinds import OVERALL

BIASED = {Severity.PAUSE: 0.5, Severity.MASK: 0.1, Severity.WARN: 0.0}
"""By how much the mean of exp(d) has to be off for a severity, where it is off by more than chance."""
LARGE = 0.5
"""The share of the noise's mean abs d below which a growth is not reported: as a policy becomes surer or less sure, the
rounding of both sides changes too."""
MANY = 1e-3
"""The share of tokens with an impossible value that stops a run; fewer are masked."""
PATTERN = 8_192
"""The tokens of a step in which a temperature or a penalty is searched for, whatever the step's size: more tell no
more."""
HOLES = 0.01
"""The share of counted placeholders above which a step is masked; fewer are a warning."""


Found = Iterator[tuple[Finding, Severity]]


@dataclass(frozen=True)
class Look:
    """What the checks of every step found, each finding with the severity that it asks for.

    `places` has the step's unit means and sizes. `means` has the unit means that count, by subset (`overall`, kinds,
    positions): none of raw logprobs, nor of answers that were chosen. `biased` names the subsets whose unit mean is
    off, `overall` first.
    """

    found: tuple[tuple[Finding, Severity], ...]
    places: Places
    means: Mapping[str, UnitMean]
    biased: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether the step by itself shows nothing: a bias that stays is one of all steps, and so are two dtypes."""
        return all(finding.check in (Check.BIAS, Check.ROUNDING) for finding, _ in self.found)

    @property
    def concerns(self) -> tuple[Concern, ...]:
        return tuple(Concern(finding.sentence, severity) for finding, severity in self.found)

    @property
    def has_unit_mean(self) -> bool:
        """Whether nothing speaks against two proper policies."""
        return not self.biased and not any(finding.check == Check.BIAS for finding, _ in self.found)


def noise_of_versions(yardstick: Yardstick, history: History) -> float:
    """Return the mean abs d above which older weights are a difference's cause: within a lag that the run states, the
    dtype's, as such weights are expected to be further off than the trainer's own."""
    return history.noise(yardstick.noise) if yardstick.lag is None else yardstick.noise


def look(step: PostedStep, yardstick: Yardstick, history: History, errors: Array) -> Look:
    """Make every check that needs no experiment and no search. `errors` float64 [N] is the mean exp(abs d) of each
    answer."""
    places = Places.of(step)
    # Of raw logprobs, or of answers that were chosen, the mean of exp(d) is not 1, and its sign names nothing.
    means = places.unit_means if step.logprobs_of == "processed" and not step.filtered else {}
    # Each subset's mean and size is a test, all answers together are one, and so are all tokens of a small step.
    answers = [mean.answers for mean in means.values()] + [size.answers for size in places.positions.values()]
    tests = sum(of >= ANSWERS for of in answers) + 2
    biased = tuple(
        subset
        for subset, mean in means.items()
        if mean.is_beyond(yardstick.bias) and history.significant(mean.t, mean.answers, tests)
    )
    if means and not biased and is_biased(step, yardstick.bias, history.share / tests):
        biased = (OVERALL,)
    found = [*_values(step), *_patterns(step), *_proofs(step, yardstick, history)]
    if means:
        found += _means(places, means, biased, yardstick, history, history.share / tests)
    found += _sizes(places, errors, yardstick, history, tests)
    return Look(tuple(found), places, means, biased)


def _values(step: PostedStep) -> Found:
    """Yield what no logprob can be, and what stands for one."""
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


def _patterns(step: PostedStep) -> Found:
    """Yield what leaves every figure small, and shows in which tokens are off."""
    some = step.some(PATTERN)
    for found in (transforms.temperature(some), transforms.penalty(some)):
        if found.result == "explains":
            yield found, Severity.WARN


def _proofs(step: PostedStep, yardstick: Yardstick, history: History) -> Found:
    """Yield what the records state of both sides."""
    noise = history.noise(yardstick.noise)
    for found in (
        proofs.versions(step, noise_of_versions(yardstick, history), yardstick.lag),
        proofs.media(step, noise),
        proofs.prompt(step, noise),
        proofs.dtypes(step, NOISE),
    ):
        if found.result in ("suspicious", "explains"):
            yield found, Severity.WARN


def _means(
    places: Places,
    means: Mapping[str, UnitMean],
    biased: Sequence[str],
    yardstick: Yardstick,
    history: History,
    share: float,
) -> Found:
    """Yield what is off in the unit mean of all tokens and of each kind; where these are 1, of each bin of positions,
    and of each answer, whose tests all together may have a `share` of false alarms; and over steps."""
    whole = [subset for subset in biased if subset in (OVERALL, *places.step.kinds)]
    for subset in whole:
        at = abs(means[subset].excess)
        yield _biased(subset, means[subset]), next(s for s, least in BIASED.items() if at >= least)
    if biased and not whole:
        yield _biased(biased[0], means[biased[0]]), Severity.WARN
    if not biased and (off := biased_answers(places, yardstick.bias, share)) is not None:
        yield off.finding(places.step), Severity.WARN
    if (staying := history.staying(yardstick.bias)) is not None:
        yield _staying(staying, history), Severity.WARN


def _sizes(places: Places, errors: Array, yardstick: Yardstick, history: History, tests: int) -> Found:
    """Yield which bins of positions and which answers are far apart, and whether the difference grows from step to
    step."""
    step, far = places.step, yardstick.far(places.step.kinds)
    over = {
        place: size
        for place, size in places.positions.items()
        if size.mean > far and history.significant(size.beyond(far), size.answers, tests)
    }
    if over and step.size <= far:  # otherwise the step's own figures tell it
        worst = max(over, key=lambda place: over[place].mean)
        yield _distant(worst, over[worst], step), Severity.WARN
    elif not over and (off := distant_answers(places, errors, yardstick.far_answer(step.kinds))) is not None:
        yield off.finding(step), Severity.WARN
    if step.size > LARGE * yardstick.noise and (grown := history.grows(step.size, places.size.error)) is not None:
        yield _growing(step, *grown), Severity.WARN


def _biased(subset: str, mean: UnitMean) -> Finding:
    side = "less" if mean.excess < 0 else "more"
    return Finding(
        Check.UNIT_MEAN,
        "suspicious",
        f"{subset}: the trainer gives the sampled tokens {abs(mean.excess):.2%} {side} probability than a policy's own "
        f"samples have ({abs(mean.t):.0f} standard errors over {counted(mean.answers, 'answer')})",
        numbers={"unit_mean": 1 + mean.excess, "error": mean.error, "answers": float(mean.answers)},
    )


def _distant(place: str, size: Size, step: PostedStep) -> Finding:
    return Finding(
        Check.POSITIONS,
        "suspicious",
        f"{place} of {counted(size.answers, 'answer')} have a mean abs d of {size.mean:.2g}, while "
        f"that of all is {step.size:.2g}",
        numbers={"abs_diff_mean": size.mean, "error": size.error, "answers": float(size.answers)},
    )


def _staying(excess: float, history: History) -> Finding:
    side = "less" if excess < 0 else "more"
    return Finding(
        Check.BIAS,
        "suspicious",
        f"over {counted(history.clean_steps, 'step')} the trainer gives the sampled tokens {abs(excess):.3%} {side} "
        "probability than a policy's own samples have: too little for one step to show, and it stays",
        numbers={"unit_mean": 1 + excess, "steps": float(history.clean_steps)},
    )


def _growing(step: PostedStep, smallest: float, steps: int) -> Finding:
    return Finding(
        Check.GROWTH,
        "suspicious",
        f"the mean abs d has grown with every update, from {smallest:.2g} to {step.size:.2g} in "
        f"{counted(steps, 'step')}",
        numbers={"smallest": smallest, "abs_diff_mean": step.size, "steps": float(steps)},
    )
