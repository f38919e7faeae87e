"""Checks of logprobs that another distribution has: the most likely token's, another temperature's, those under a
penalty on tokens that were there before.

Two proper policies that differ for another reason (older weights, other kernels) show none of these patterns: their
difference depends neither on how likely a token is nor on whether it came before.
"""

import math

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.posted.distributions import one_way
from omni_rl.consistency.posted.step import Array, Index, Mask, PostedStep

FEWEST = 512
"""The number of judged tokens below which no pattern can be told from chance."""
ONE_WAY, NEARLY_ALL = 0.8, 0.95
"""The smallest share of the open tokens at which a temperature moves the entropy one way; and the share from which on
`FEWEST_WITH_ENTROPIES` tokens are enough."""
FEWEST_WITH_ENTROPIES = 64
BINS = 32
LEVEL = 0.25
"""The smallest share of the variance of d that goes with how likely the token is, where the temperatures differ: 0.4 to
0.7 measured for temperatures 0.6 to 1.3, at most 0.06 for other weights (0.33 where these are also 0.8 as hot)."""
STRAIGHT = 0.45
"""The smallest share of the variance of the log-odds' difference that one temperature explains."""
LEVELS = np.array([0.2, 0.4, 0.6, 0.8, 0.95])
"""The probabilities between which the most likely tokens are counted apart."""
LEVEL_TOKENS = 32
ABOVE_TOP = 0.05
"""The largest share of the tokens that are apart which may be likelier than the most likely."""
LEAST = 0.02
"""By how much a temperature is off, at least."""
LIKELY = math.log(0.5)
SURE = -1e-4
"""The logprob from which on rounding decides a token's odds."""
TILTED, ERRORS = 0.2, 5.0
"""How much more often d is above zero for tokens that were there before, at least: as a share, and in standard
errors."""
KNOWN, ALONE = 16.0, 8.0
"""The number of pairs of one id, there before and new, below which these do not count; and the standard errors that it
takes without them."""
SEEN = 0.05
"""The smallest share of the variance of d that goes with whether a token was there before, beside how likely it is. A
smaller one is enough where the new tokens' difference is `ONE_SIDED`."""
ONE_SIDED = 0.3
"""How much more of the new tokens' difference lies on their side of zero than on the other, at least, as a share."""


def most_likely(step: PostedStep, noise: float) -> Finding:
    """Check whether one side reports the most likely token's logprob in place of the sampled one's. `noise` is the mean
    abs d of two correct computations."""
    lr, lt, d = step.rollout[step.judged], step.train[step.judged], step.d[step.judged]
    if len(d) < FEWEST:
        return Finding(Check.TRANSFORM, "clear", "too few tokens to tell the most likely ones")
    near = _near(d, noise)
    for side, top, sampled in (("engine", lr, lt), ("trainer", lt, lr)):
        if _is_most_likely(top, sampled, near):
            return Finding(
                Check.TRANSFORM,
                "explains",
                f"the {side}'s logprobs are those of the most likely token, not of the sampled one: "
                f"{near.mean():.0%} of tokens agree, as often as the {side} calls its own token likely; take the "
                "sampled id's entry",
                Cause.LOGPROB_POSTPROCESSING,
                {"agree": float(near.mean()), "abs_diff_mean": step.size},
            )
    return Finding(Check.TRANSFORM, "clear", "neither side's logprobs are the most likely tokens'")


def _is_most_likely(top: Array, sampled: Array, near: Mask) -> bool:
    """Return whether both sides agree where the top token was sampled: with its own probability p, whatever p is;
    elsewhere the sampled token has at most what the top leaves, 1 - p."""
    chance = np.exp(np.minimum(top, 0.0))
    level = np.searchsorted(LEVELS, chance)
    for number in range(len(LEVELS) + 1):
        here = level == number
        count = int(here.sum())
        if count < LEVEL_TOKENS:
            continue
        expected = float(chance[here].mean())
        error = math.sqrt(max(expected * (1 - expected), 1e-3) / count)
        if abs(float(near[here].mean()) - expected) > 0.06 + 4 * error:
            return False
    parted = ~near
    if not parted.any():
        return False
    if (sampled[parted] > top[parted]).mean() > ABOVE_TOP:  # those of another sample, say
        return False
    with np.errstate(divide="ignore"):
        room = np.log(-np.expm1(np.minimum(top[parted], -1e-12)))
    return bool(parted.mean() >= 0.01 and (sampled[parted] <= room + 0.2).mean() >= 0.95)


def _near(d: Array, noise: float) -> Mask:
    """Return on which tokens both sides agree, by the noise that the closest quarter of them shows, if that is
    noise."""
    found: Mask = np.abs(d) <= max(0.1, 8 * min(noise, float(np.quantile(np.abs(d), 0.25))))
    return found


def temperature(step: PostedStep) -> Finding:
    """Check whether the two sides' logprobs differ as those of two temperatures do: the log-odds of a likely token are
    then the other side's over the temperature, so that likely tokens move one way and unlikely ones the other."""
    lr, lt, d = step.rollout[step.judged], step.train[step.judged], step.d[step.judged]
    clear = Finding(Check.TEMPERATURE, "clear", "the difference does not follow how likely a token is")
    entropies = one_way(step)
    if entropies is not None and entropies < ONE_WAY:
        return Finding(clear.check, clear.result, "the two sides' entropies do not differ one way", numbers={})
    fewest = FEWEST if entropies is None or entropies < NEARLY_ALL else FEWEST_WITH_ENTROPIES
    if len(d) < fewest:
        return clear
    likely = (np.minimum(lr, lt) > LIKELY) & (np.maximum(lr, lt) < SURE)
    if int(likely.sum()) < fewest // 4:
        return clear
    engine, trainer = _log_odds(lr[likely]), _log_odds(lt[likely])
    at = float(trainer @ engine / (engine @ engine))
    spread = float(np.mean((trainer - engine) ** 2))
    straight = 1 - float(np.mean((trainer - at * engine) ** 2)) / spread if spread > 0 else 0.0
    said = float(np.median(step.temperatures)) if len(step) else 1.0
    numbers = {"fits": at, "asked": said, "straight": straight, "abs_diff_mean": step.size}
    if straight < STRAIGHT or abs(at - 1) < LEAST:
        return Finding(clear.check, clear.result, clear.sentence, numbers=numbers)
    level = max(explained(d, quantile_bins(lr)), explained(d, quantile_bins(lt)))
    numbers["level"] = level
    if level < LEVEL:
        return Finding(clear.check, clear.result, clear.sentence, numbers=numbers)
    about = f"about {at:.2g} times the trainer's"
    advice = "divide the trainer's logits by the temperature that the engine samples at"
    # A temperature of 0 says that the engine sampled greedily: nobody divides logits by it.
    asked = math.log(said) if said > 0 else 0.0
    if abs(math.log(at) - asked) < abs(math.log(at)):
        about, advice = f"{said:g}, which the trainer does not apply", "divide the trainer's logits by it"
    elif abs(math.log(at) + asked) < abs(math.log(at)):
        about, advice = "1, not the ones it sampled by", "ask the engine for processed logprobs"
    return Finding(
        Check.TEMPERATURE,
        "explains",
        f"the engine's logprobs are those at a temperature of {about}: {level:.0%} of the difference goes with how "
        f"likely a token is, and the log-odds of likely tokens lie on one line; {advice}",
        Cause.LOGPROB_POSTPROCESSING,
        numbers,
    )


def penalty(step: PostedStep) -> Finding:
    """Check whether tokens that the answer or its prompt held before are the ones that are off: a repetition, frequency
    or presence penalty that one side applies alone.

    They are compared with new tokens that are as likely, and with the same ids where these are new: common words come
    again more often, and a policy that learns may move them too.
    """
    clear = Finding(Check.PENALTY, "clear", "tokens that were there before are no further off than new ones")
    if step.ids is None:
        return Finding(Check.PENALTY, "not_done", "no ids were posted")
    judged = step.judged
    seen, d = _seen(step)[judged], step.d[judged]
    if len(d) < FEWEST or min(int(seen.sum()), int((~seen).sum())) < FEWEST // 32:
        return clear
    level = quantile_bins(step.rollout[judged] + step.train[judged])
    up, errors, _ = _tilt(d, seen, level)
    again, its_errors, pairs = _tilt(d, seen, np.unique(step.ids[judged], return_inverse=True)[1])
    before, new = float(d[seen].mean()), float(d[~seen].mean())
    numbers = {"tilt": up, "errors": errors, "tilt_of_ids": again, "d_mean_seen": before, "d_mean_new": new}
    known = pairs >= KNOWN
    same = not known or (up * again > 0 and abs(again) >= TILTED and abs(its_errors) >= ERRORS / 2)
    if abs(up) < TILTED or abs(errors) < (ERRORS if known else ALONE) or not same:
        return Finding(clear.check, clear.result, clear.sentence, numbers=numbers)
    numbers["gain"] = explained(d, level + BINS * seen) - explained(d, level)
    one_sided = -math.copysign(1.0, up) * float(d[~seen].sum()) / max(float(np.abs(d[~seen]).sum()), 1e-12)
    if numbers["gain"] < SEEN and one_sided < ONE_SIDED:
        return Finding(clear.check, clear.result, clear.sentence, numbers=numbers)
    side, other = ("engine", "trainer") if up > 0 else ("trainer", "engine")
    return Finding(
        Check.PENALTY,
        "explains",
        f"tokens that were there before are less likely at the {side} (mean d {before:+.2g}) and new ones likelier "
        f"({new:+.2g}): the {side} applies a repetition, frequency or presence penalty that the {other} does not; "
        "switch it off",
        Cause.LOGPROB_POSTPROCESSING,
        numbers,
    )


def _tilt(d: Array, seen: Mask, stratum: Index) -> tuple[float, float, float]:
    """Return how much more often d is above zero for tokens that were there before than for new ones of the same
    stratum, that in standard errors, and how many pairs of the two tell it: the test of Mantel and Haenszel (1959). It
    counts signs, because one token that is far off must not decide it."""
    moved = d != 0
    seen, stratum, above = seen[moved], stratum[moved], d[moved] > 0
    count, both = np.bincount(stratum).astype(np.float64), np.bincount(stratum, seen & above)
    before, up = np.bincount(stratum, seen), np.bincount(stratum, above)
    several = count > 1
    count, both, before, up = count[several], both[several], before[several], up[several]
    pairs = float((before * (count - before) / count).sum())
    beyond = float((both - before * up / count).sum())
    variance = float((before * (count - before) * up * (count - up) / (count**2 * (count - 1))).sum())
    return (beyond / pairs, beyond / math.sqrt(variance), pairs) if variance > 0 else (0.0, 0.0, 0.0)


def _seen(step: PostedStep) -> Mask:
    """Return which tokens [T] have an id that stands before them in the same answer, or in its prompt."""
    assert step.ids is not None
    answers, ids = step.answer, step.ids.astype(np.int64)
    if step.prompts is not None:
        lengths = [len(prompt) for prompt in step.prompts]
        answers = np.concatenate([np.repeat(np.arange(len(step)), lengths), answers])
        ids = np.concatenate([*[np.asarray(p, np.int64) for p in step.prompts], ids])
    _, first = np.unique(answers * (int(ids.max(initial=0)) + 1) + ids, return_index=True)
    seen = np.ones(len(ids), np.bool_)
    seen[first] = False
    return seen[len(ids) - len(step.ids) :]


def quantile_bins(values: Array) -> Index:
    """Return the bin of each value among `BINS` of equal counts."""
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    found: Index = np.searchsorted(edges, values)
    return found


def explained(d: Array, bins: Index) -> float:
    """Return the share of the variance of d that lies between bins; 0.0 where d does not vary."""
    whole = float(d.var())
    if whole == 0:
        return 0.0
    counts = np.bincount(bins)
    means = np.bincount(bins, d) / np.maximum(counts, 1)
    return 1 - float(np.mean((d - means[bins]) ** 2)) / whole


def _log_odds(logprobs: Array) -> Array:
    found: Array = logprobs - np.log(-np.expm1(logprobs))
    return found
