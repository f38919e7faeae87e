"""Checks of alignment: one side's tokens shifted against the other's, or one answer's logprobs paired with
another's."""

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Check, Finding, named
from omni_rl.consistency.posted.step import Array, Index, PostedStep
from omni_rl.counting import agreeing, counted

SHIFTS = (1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 8, -8)
FEWEST = 8
"""The tokens that an answer needs after a shift, or a pair of answers in common, to be told from chance."""
EXPLAINED = 0.4
"""The share of the difference that may be left once a hypothesis that explains it is applied."""
ALONE = 0.6
"""The largest share of what a shift explains that one token may have: a token out of its place is missing from
another."""
STANDS_OUT = 0.15
"""How far the answer that another's logprobs belong to is from these at most, as a share of the other answers' median:
0.02 to 0.1 where rows were swapped, from 0.2 on where the nearest of 20 answers is so by chance."""
TOKENS = 65_536
"""How many tokens of the furthest answers are searched for shifts."""
ROWS = 256
"""How many of the furthest answers are compared with all others."""
FIRST = 32
"""How many of its first judged tokens an answer is compared by."""


def token_shift(whole: PostedStep, noise: float) -> Finding:
    """Check whether the trainer's logprobs are the engine's of some tokens before or after, from a place in each answer
    on: an off-by-one of everything, or a prompt or answer that was tokenised anew and lost its place.

    `noise` is the mean abs d of two correct computations. Where few answers of a step are further off than that, these
    alone have to be explained.
    """
    step = whole.furthest(TOKENS)
    best, shift, start = _shifts(step)
    moved = np.flatnonzero(best > FEWEST * noise)
    gain = float(best[moved].sum())
    sums = step.by_answer(np.abs(step.d))
    off = sums > noise * step.lengths
    left = (np.abs(step.d).sum() - gain) / step.tokens if step.tokens else 0.0
    numbers = {"abs_diff_mean": step.size, "abs_diff_mean_shifted": float(left), "answers": float(len(moved))}
    explained = left <= EXPLAINED * step.size or float((sums - best)[off].sum()) <= EXPLAINED * float(sums[off].sum())
    if not len(moved) or not explained:
        return Finding(Check.TOKEN_SHIFT, "clear", "no shift of tokens explains it", numbers=numbers)
    by = np.unique(shift[moved])
    whole_answers = bool((start[moved] <= FEWEST).all())
    far = counted(int(abs(by[0])), "token") if len(np.unique(np.abs(by))) == 1 else "several tokens"
    direction = " after" if (by > 0).all() else " before" if (by < 0).all() else ""
    names = [step.samples[n] for n in moved[np.argsort(-best[moved], kind="stable")]]
    return Finding(
        Check.TOKEN_SHIFT,
        "explains",
        f"the engine's logprobs are the trainer's of {far}{direction} in {len(moved)} of "
        f"{counted(len(whole), 'answer')}{'' if whole_answers else ', from the middle on'} ({named(names)}): "
        f"shifted, the mean abs d falls from {step.size:.2g} to {left:.2g}; compare how each side cuts or "
        "re-tokenises prompt and answer",
        Cause.TOKEN_SHIFT,
        numbers | {"shift": float(by[0])},
        samples=tuple(names[:8]),
    )


def _shifts(step: PostedStep) -> tuple[Array, Index, Index]:
    """Return for each answer by how much the sum of abs d falls with its best shift, which shift that is, and the token
    from which on it applies."""
    count, size = len(step), len(step.rollout)
    best, shift, start = np.zeros(count), np.zeros(count, np.int64), np.zeros(count, np.int64)
    filled = np.flatnonzero(np.diff(step.offsets) > 0)
    if not len(filled):
        return best, shift, start
    first, last = step.offsets[:-1][filled], step.offsets[1:][filled]
    base, cap = np.abs(step.d), np.abs(step.d).max()
    train = np.where(np.isfinite(step.train), step.train, np.inf)
    at = np.arange(size)
    for by in SHIFTS:
        other = at + by
        inside = (other >= step.offsets[step.answer]) & (other < step.offsets[step.answer + 1])
        partner = np.clip(other, 0, size - 1)
        inside &= step.judged[partner]  # what stands under a mask may be anything
        moved = np.where(inside, train[partner], np.inf)
        with np.errstate(invalid="ignore"):
            cost = np.where(step.judged, np.minimum(np.abs(moved - step.rollout), cap), 0.0)
        cost = np.where(inside, cost, base)  # a token that has no partner explains nothing
        gain = base - cost
        # From a place on: the largest sum over the rest of the answer.
        total = np.concatenate([[0.0], np.cumsum(gain)])
        rest = total[step.offsets[step.answer + 1]] - total[:-1]
        top = np.maximum.reduceat(rest, first)
        better = top > best[filled]
        for number in np.flatnonzero(better):
            a, b = int(first[number]), int(last[number])
            begin = int(np.argmax(total[b] - total[a:b]))
            spent = cost[a + begin : b].sum()
            together = gain[a + begin : b].max() <= ALONE * top[number]
            if together and b - a - begin >= FEWEST and spent <= EXPLAINED * base[a + begin : b].sum():
                best[filled[number]], shift[filled[number]], start[filled[number]] = top[number], by, begin
    return best, shift, start


def sample_pairing(step: PostedStep, noise: float) -> Finding:
    """Check whether one answer's logprobs by the engine are another answer's by the trainer: rows swapped in a group,
    ranks gathered in another order, scores handed back to the wrong samples.

    `noise` is the mean abs d of two correct computations. Answers that are no further off need no explanation.
    """
    sums = step.by_answer(np.abs(step.d))
    rows = np.argsort(-sums, kind="stable")[:ROWS]
    rows = rows[(step.lengths[rows] >= FEWEST) & (sums[rows] > noise * step.lengths[rows])]
    trainer = np.where(step.judged, step.train, np.nan)
    off, other, own, best = [], [], 0.0, 0.0
    for n in rows.tolist():
        start = step.offsets[n]
        # Answers are compared place by place: where they are masked otherwise, their n-th judged tokens are not one.
        places = np.flatnonzero(step.judged[start : step.offsets[n + 1]])[:FIRST]
        apart = np.abs(_at(step, trainer, places) - step.rollout[start + places])
        common = np.isfinite(apart)
        enough = common.sum(1) >= FEWEST
        cost = np.where(common, np.minimum(apart, 8.0), 0.0).sum(1) / np.maximum(common.sum(1), 1)
        cost[~enough] = np.inf
        mine = cost[n]
        cost[n] = np.inf
        partner = int(cost.argmin())
        own += mine
        others = cost[np.isfinite(cost) & (np.arange(len(cost)) != partner)]
        # Where most tokens are certain, some of many answers come near by chance: the one that it is stands out.
        stands_out = not len(others) or cost[partner] <= STANDS_OUT * float(np.median(others))
        if cost[partner] <= EXPLAINED * mine and stands_out:
            off.append(n)
            other.append(partner)
            best += cost[partner]
        else:
            best += mine
    numbers = {"answers": float(len(off)), "abs_diff_mean": own / max(len(rows), 1), "paired": best / max(len(rows), 1)}
    if not off or best > EXPLAINED * own:
        return Finding(Check.SAMPLE_PAIRING, "clear", "no other answer matches better", numbers=numbers)
    return Finding(
        Check.SAMPLE_PAIRING,
        "explains",
        f"{counted(len(off), 'answer carries', 'answers carry')} another answer's logprobs: the engine's of "
        f"{step.samples[off[0]]} are the trainer's of {step.samples[other[0]]}; paired so, the mean abs d of "
        f"{agreeing(len(off), 'its', 'their')} first tokens falls from {numbers['abs_diff_mean']:.2g} to "
        f"{numbers['paired']:.2g}; look at how rows are gathered over ranks and groups",
        Cause.SAMPLE_PAIRING,
        numbers,
        samples=tuple(step.samples[n] for n in off[:8]),
    )


def _at(step: PostedStep, values: Array, places: Index) -> Array:
    """Return the token values [T] that each answer has at `places` [P], counted from its start, [N, P]; NaN beyond its
    end."""
    at = step.offsets[:-1, None] + places
    return np.where(at < step.offsets[1:, None], values[np.minimum(at, len(values) - 1)], np.nan)
