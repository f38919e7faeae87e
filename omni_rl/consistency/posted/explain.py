"""Finds the cause of a posted step's difference from its records alone: every check in its order, until one explains
it.

The order is that of proof: first what no policy can have made, then what the records state, then what realigning or
undoing takes away, and last what only a pattern shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.dtypes import DTYPES
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.limits import LIMITS, Figures, Severity, judge
from omni_rl.consistency.posted import alignment, copies, distributions, proofs, transforms, values
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.look import Look, noise_of_versions
from omni_rl.consistency.posted.outliers import is_biased
from omni_rl.consistency.posted.places import LAST
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.consistency.posted.support import support
from omni_rl.consistency.yardstick import NOISE, Yardstick
from omni_rl.kinds import OVERALL

EVEN = 0.1
"""By how much the share of tokens above zero may miss a half, where rounding is the cause."""
LIKELY = 3.0
"""The standard errors of the unit mean from 1 beyond which it does not speak for proper policies either."""
AT_THE_END = 0.7
"""The share of a bias that the answers' last tokens carry where they are its reason."""
SURE = 0.2
"""The standard error of the unit mean, as a share of the mean abs d, above which it does not speak for proper
policies."""
FALLS = 0.01
"""The probability that chance moves the unit mean as far from 1 as that of a step that is off in size already."""
CONSTANT = 3
"""How many earlier steps of the same size show that a difference stays."""


@dataclass(frozen=True)
class Explanation:
    """Why a step is not ok.

    The `cause` is `unknown` where no check reproduces the difference; `sentence` says the cause and what to do;
    `findings` has what every check found, in order.
    """

    cause: Cause
    sentence: str
    findings: tuple[Finding, ...]


def explain(step: PostedStep, yardstick: Yardstick, history: History, seen: Look, figures: Figures) -> Explanation:
    """Find out why a step is not ok, as far as its records and `figures` tell."""
    findings = []
    for finding in _checks(step, yardstick, history, seen):
        findings.append(finding)
        if finding.result == "explains":
            return _explained(finding, findings)
    said = next((finding for finding in findings if finding.result == "suspicious" and finding.cause), None)
    if said is not None and step.size <= yardstick.noise:
        # Nothing is to be reproduced: the difference that the records state is all that there is.
        explains = replace(said, result="explains")
        return _explained(explains, [explains if finding is said else finding for finding in findings])
    findings.append(_rounding(step, yardstick, history, seen, figures))
    if findings[-1].result == "explains":
        return _explained(findings[-1], findings)
    return Explanation(Cause.UNKNOWN, _unknown(step, seen, findings), tuple(findings))


def _explained(finding: Finding, findings: list[Finding]) -> Explanation:
    assert finding.cause is not None
    return Explanation(finding.cause, finding.sentence, tuple(findings))


def _checks(step: PostedStep, yardstick: Yardstick, history: History, seen: Look) -> Iterator[Finding]:
    noise = history.noise(yardstick.noise)
    yield values.nonfinite(step)
    yield values.impossible(step)
    yield proofs.versions(step, noise_of_versions(yardstick, history), yardstick.lag)
    yield proofs.media(step, noise)
    yield proofs.prompt(step, noise)
    yield proofs.dtypes(step, NOISE)
    yield copies.kept_in_fewer_bits(step, yardstick.noise)
    yield values.placeholders(step)
    yield alignment.token_shift(step, noise)
    yield alignment.sample_pairing(step, noise)
    yield copies.scaled(step)
    yield copies.clipped(step)
    yield distributions.wrong_entry(step, yardstick.noise)
    yield distributions.other_ids(step, yardstick.noise)
    yield transforms.most_likely(step, yardstick.noise)
    yield transforms.penalty(step)
    yield distributions.cut_off(step, yardstick.noise)
    yield _support(step, yardstick, seen)
    yield transforms.temperature(step)
    yield from (finding for finding, _ in seen.found if finding.check in (Check.POSITIONS, Check.ANSWERS))
    yield _stale(step, seen)


def _support(step: PostedStep, yardstick: Yardstick, seen: Look) -> Finding:
    """Check whether support was lost, in the subset whose unit mean is off. No sampler cuts the last tokens alone."""
    if not seen.means or (seen.has_unit_mean and not is_biased(step, yardstick.bias, FALLS)):
        return Finding(Check.SUPPORT, "clear", "the mean of exp(d) is 1: no support was lost")
    subset = seen.biased[0] if seen.biased else OVERALL
    inside = seen.places.inside(subset)
    last = inside & seen.places.inside(LAST)
    carried = float(np.expm1(step.d[last]).sum()) / max(float(np.abs(np.expm1(step.d[inside]).sum())), 1e-12)
    if abs(carried) > AT_THE_END and int(last.sum()) < (1 - AT_THE_END) * int(inside.sum()):
        return Finding(
            Check.POSITIONS,
            "suspicious",
            f"{LAST} carry {abs(carried):.0%} of it: look at what each side takes for an answer's end (an EOS that was "
            "appended, cut off or replaced)",
            numbers={"carried": abs(carried)},
        )
    return support(step if subset == OVERALL else step.without(~inside), seen.means[subset], yardstick.noise)


def _stale(step: PostedStep, seen: Look) -> Finding:
    """Check whether the engine's weights stay behind: the difference grows with every update, and both sides are proper
    policies all the while."""
    found = {finding.check: finding for finding, _ in seen.found}
    if Check.GROWTH not in found or not seen.has_unit_mean:
        return Finding(Check.GROWTH, "clear", "the difference does not grow with every update")
    growth = found[Check.GROWTH]
    return Finding(
        Check.GROWTH,
        "explains",
        f"{growth.sentence}, while both sides stay proper policies (unit mean 1): the trainer learns and the engine "
        "keeps older weights; look whether the updates, or the adapter, reach it, and sync",
        Cause.STALE_WEIGHTS,
        growth.numbers,
    )


def _rounding(step: PostedStep, yardstick: Yardstick, history: History, seen: Look, figures: Figures) -> Finding:
    """Check whether the difference is that of a dtype: every figure is within the dtype's own limits, d is as often
    above zero as below, nothing else was found, and the difference was the same at every step since the first."""
    clear = Finding(Check.ROUNDING, "clear", "the difference is not that of a dtype")
    moved = step.d[step.d != 0]
    if seen.found or not len(moved) or abs(float((moved > 0).mean()) - 0.5) > EVEN:
        return clear
    of = next((dtype for dtype in DTYPES if judge(figures, LIMITS[dtype]).severity <= Severity.OK), None)
    sizes = [size for size, _ in history.sizes]
    constant = all(step.size / 2 <= size <= step.size * 2 for size in sizes)
    # Of the run's own dtypes it is expected from the first step on; of a coarser one it has to stay what it is.
    expected = of is not None and NOISE[of] <= yardstick.noise
    if of is None or not constant or (not expected and len(sizes) < CONSTANT):
        return clear
    said = (
        "as far apart as the run's dtypes are: its limits are tighter than these allow"
        if expected
        else f"as far apart as {of} is, at each of {len(sizes) + 1} steps: one side computes in it; state both sides' "
        "dtypes (dtype, train_dtype), or compute both in one"
    )
    return Finding(
        Check.ROUNDING, "explains", f"the two sides are {said}", Cause.ROUNDING, {"abs_diff_mean": step.size}
    )


def _unknown(step: PostedStep, seen: Look, findings: list[Finding]) -> str:
    """Return a sentence with the best suspects, by what the unit mean says."""
    told = [finding.sentence for finding in findings if finding.result == "suspicious"]
    if told:
        return "; ".join(told)
    mean = seen.means.get(OVERALL)
    if mean is None or (seen.has_unit_mean and (mean.error > SURE * step.size or abs(mean.t) > LIKELY)):
        return "no check of the records reproduces the difference"
    biased = [finding for finding, _ in seen.found if finding.check in (Check.UNIT_MEAN, Check.BIAS)]
    if biased and mean.excess > 0:
        return f"{biased[0].sentence}: rows or positions do not belong together, or the logprobs are not processed ones"
    if biased:
        return f"{biased[0].sentence}: support was lost, or the numbers are not that policy's"
    return (
        "no check of the records reproduces the difference, and both sides are proper policies (unit mean 1): they "
        "have other weights, other media, or other kernels"
    )
