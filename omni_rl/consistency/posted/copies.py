"""Checks of logprobs that are the right ones but for what was done to each: scaled, shifted by a constant, cut off at a
floor, kept in fewer bits."""

import math
from collections.abc import Mapping

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.posted.step import CAP, Array, Mask, PostedStep
from omni_rl.counting import counted

FEWEST = 64
"""The number of judged tokens below which no function can be told from chance."""
LEFT = 0.2
"""The share of the difference that may be left once the change is undone: nothing but noise."""
FACTORS = (0.1, 10.0)
BASES = {"10": math.log(10), "2": math.log(2)}
HELD = 4
"""The fewest tokens at a floor that show it."""
BELOW = 0.95
"""The smallest share of the tokens at one side's floor that must lie below it on the other side."""
BITS: Mapping[str, int] = {"bfloat16": 8, "float16": 11}
"""The bits of a number's significand, by dtype."""
ON_GRID = 0.995
"""The smallest share of the tokens whose difference must be within the rounding of their logprobs."""
TOKEN = 10.0
"""How many times the noise's mean abs d a single token may be off beside the rounding."""


def scaled(step: PostedStep) -> Finding:
    """Check whether the engine's logprobs are the trainer's times a factor and plus a constant: logarithms to another
    base, a sum over two tokens, a reward that was added."""
    clear = Finding(Check.TRANSFORM, "clear", "neither side's logprobs are the other's times a factor")
    lr, lt = step.rollout[step.judged], step.train[step.judged]
    if len(lr) < FEWEST or np.ptp(lt) == 0:
        return clear
    by = float(np.cov(lt, lr, bias=True)[0, 1] / lt.var())
    plus = float(lr.mean() - by * lt.mean())
    left = float(np.minimum(np.abs(by * lt + plus - lr), CAP).mean())
    spread = float(np.minimum(np.abs(lr - np.median(lr)), CAP).mean())
    if not FACTORS[0] <= by <= FACTORS[1] or left > LEFT * min(step.size, spread):
        return clear
    constant = f" {'plus' if plus > 0 else 'less'} {abs(plus):.3g}" if abs(plus) > LEFT * step.size else ""
    what = f"the engine's logprobs are the trainer's times {by:.4g}{constant}"
    for base, factor in BASES.items():
        for side, at in (("engine", 1 / factor), ("trainer", factor)):
            if not constant and abs(by / at - 1) < 0.05:
                what = f"the {side}'s logprobs are logarithms to base {base}"
    return Finding(
        Check.TRANSFORM,
        "explains",
        f"{what}: undone, the mean abs d falls from {step.size:.2g} to {left:.2g}; post the natural logarithm of each "
        "sampled token's probability, and nothing else",
        Cause.LOGPROB_POSTPROCESSING,
        {"factor": by, "constant": plus, "abs_diff_mean": step.size, "left": left},
    )


def clipped(step: PostedStep) -> Finding:
    """Check whether one side's logprobs are cut off at a floor below which the other's go on."""
    judged = step.judged
    for side, values, other in step.sides:
        its, others = values[judged], other[judged]
        if not is_floor(its, others):
            continue
        floor = float(its.min())
        left = step.mean_abs(np.maximum(others, floor) - its)
        if len(its) >= FEWEST and left <= LEFT * step.size:
            return Finding(
                Check.TRANSFORM,
                "explains",
                f"none of the {side}'s logprobs is below {floor:g}, which "
                f"{counted(int((its == floor).sum()), 'token has', 'tokens have')}: "
                f"with that floor on both sides the mean abs d falls from {step.size:.2g} to {left:.2g}; do not clip "
                "logprobs",
                Cause.LOGPROB_POSTPROCESSING,
                {"floor": floor, "abs_diff_mean": step.size, "left": left},
            )
    return Finding(Check.TRANSFORM, "clear", "neither side's logprobs are cut off")


def is_floor(values: Array, other: Array) -> bool:
    """Return whether the lowest of `values` is where they were cut off: several have it, and `other` has less there."""
    if not len(values):
        return False
    held = values == values.min()
    return bool(held.sum() >= HELD and (other[held] < values[held]).mean() >= BELOW)


def kept_in_fewer_bits(step: PostedStep, noise: float) -> Finding:
    """Check whether a side's logprobs were rounded to bfloat16 or float16 after they were computed: all of them lie on
    the dtype's grid, and nearly all of the difference is within half of a step of that grid.

    `noise` is the mean abs d of two correct computations.
    """
    judged = step.judged
    for dtype, bits in BITS.items():
        kept = [(side, values) for side, values, _ in step.sides if _is_on_grid(values[judged], bits)]
        if not kept:
            continue
        half = sum(_step(values[judged], bits) / 2 for _, values in kept)
        off = np.abs(step.d[judged])
        within = off <= half * (1 + 1e-6) + TOKEN * noise
        if float(np.mean(half)) <= noise or float(within.mean()) < ON_GRID:
            continue
        if float(off[~within].sum()) > LEFT * float(off.sum()):
            continue
        sides = " and ".join(f"the {side}'s" for side, _ in kept)
        return Finding(
            Check.ROUNDING,
            "explains",
            f"{sides} logprobs are kept in {dtype}: all lie on its grid, and {within.mean():.1%} of the differences "
            "are within its rounding; keep logprobs in float32",
            Cause.ROUNDING,
            {"abs_diff_mean": step.size, "within": float(within.mean())},
        )
    return Finding(Check.ROUNDING, "clear", "neither side's logprobs are kept in fewer bits than float32")


def _is_on_grid(values: Array, bits: int) -> bool:
    some: Mask = values != 0
    if int(some.sum()) < FEWEST:
        return False
    scaled_up = values[some] / _step(values[some], bits)
    return bool((scaled_up == np.round(scaled_up)).all())


def _step(values: Array, bits: int) -> Array:
    """Return the distance of neighbouring numbers of so many bits at each value."""
    _, exponent = np.frexp(values)
    found: Array = np.ldexp(1.0, exponent - bits)
    return found
