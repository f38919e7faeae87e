"""Translates figures both ways: the trainer's own, as the coordinator takes them, and a verdict's, as the trainer logs
them."""

import re
from collections.abc import Mapping
from numbers import Real

from omni_rl.api.steps import Verdict
from omni_rl.consistency.limits import Severity
from omni_rl.kinds import OVERALL

UNUSABLE = re.compile(r"[^A-Za-z0-9._-]+")
LONGEST, MOST = 64, 64
"""The most characters of a name, and the most figures of a step, that the coordinator takes."""
PREFIX = "omni_rl/"
SHOWN = ("logprob_abs_diff_mean", "logprob_abs_diff_max", "gen_kl_error", "token_mult_prob_error")


def for_coordinator(figures: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers among a trainer's figures, NaN and infinity too, under names that the coordinator takes:
    rewards/mean is rewards.mean there. Left out are figures after the first 64, numbers too large for a float, and what
    has a name that is no text."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if not isinstance(name, str) or len(found) >= MOST:
            continue
        fit = UNUSABLE.sub(".", name).strip("._-")[:LONGEST]
        if fit and (number := _number(value)) is not None:
            found[fit] = number
    return found


def _number(value: object) -> float | None:
    """Return a number of Python or numpy, or an array or tensor of one number, as a float; None for anything else."""
    try:
        plain = value if isinstance(value, Real) or not hasattr(value, "item") else value.item()
        return float(plain) if isinstance(plain, Real) else None
    except Exception:  # the boundary to values of somebody's run: a tensor of several numbers, say, must not end it
        return None


def for_trainer(verdict: Verdict) -> dict[str, float]:
    """Return a verdict as numbers for the framework's own metrics: `severity` (-1 unjudged, 0 ok, 1 warn, 2 mask,
    3 pause), the `step` that it is of, overall figures, and 1.0 under `cause/NAME` where there is a cause."""
    overall = verdict.figures.get(OVERALL, {})
    figures: dict[str, float | None] = {name: overall.get(name) for name in SHOWN}
    found = {f"{PREFIX}{name}": value for name, value in figures.items() if value is not None}
    found[f"{PREFIX}severity"] = float(Severity[verdict.severity.upper()])
    found[f"{PREFIX}step"] = float(verdict.step)
    if verdict.cause is not None:
        found[f"{PREFIX}cause/{verdict.cause}"] = 1.0
    return found
