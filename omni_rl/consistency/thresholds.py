"""When a comparison counts as agreement."""

from dataclasses import dataclass
from typing import Literal

from omni_rl.consistency.metrics import Comparison
from omni_rl.consistency.router import TIE, LeaveOut

Verdict = Literal["agree", "disagree"]


@dataclass(frozen=True)
class Thresholds:
    """Upper limits, inclusive; None means that the figure is not judged.

    float32 differs by the order of summation alone, so its limits sit an order of magnitude above what clean runs
    show and four below the smallest semantic fault. bfloat16 is judged as the field does: NeMo RL's documentation
    asks to investigate a token_mult_prob_error above 1.05.
    """

    logprob_abs_diff_mean: float | None = None
    logprob_abs_diff_max: float | None = None
    token_mult_prob_error: float | None = None
    excluded_fraction: float | None = None
    router_margin: float | None = None
    leave_out: LeaveOut = "after_flip"


THRESHOLDS: dict[str, Thresholds] = {
    "float32": Thresholds(
        logprob_abs_diff_mean=1e-5, logprob_abs_diff_max=1e-4, excluded_fraction=1e-3, router_margin=TIE
    ),
    "bfloat16": Thresholds(token_mult_prob_error=1.05, leave_out="flipped"),
}


def breaches(comparison: Comparison, limits: Thresholds) -> list[str]:
    """What is over its limit, one sentence each; empty means agreement. NaN is over every limit.

    A comparison of no tokens at all (all of them follow a router flip) has no figures to judge: see `left_out`.
    """
    metrics = comparison.metrics
    found = []
    for name in ("logprob_abs_diff_mean", "logprob_abs_diff_max", "token_mult_prob_error"):
        limit, value = getattr(limits, name), getattr(metrics, name)
        if limit is not None and metrics.tokens and not value <= limit:
            found.append(f"{name} {value:.3g} is over {limit:g}")
    if limits.router_margin is not None:
        found += [
            f"sample {flip.sample}: router flip at position {flip.position}, MoE layer {flip.layer}, with a margin of "
            f"{flip.margin:.3g}, over {limits.router_margin:g}: not a tie"
            for flip in comparison.flips
            if not flip.margin < limits.router_margin
        ]
    return found


def left_out(run: Comparison, limits: Thresholds) -> list[str]:
    """Whether router flips left out more of a whole run than they may; judged over a run because one tie in a small
    set of tokens is a large share of it."""
    left, total = run.metrics.excluded_tokens, run.metrics.tokens + run.metrics.excluded_tokens
    if limits.excluded_fraction is None or left <= limits.excluded_fraction * total:
        return []
    return [f"{left} of {total} tokens follow a router flip, over {limits.excluded_fraction:.1%}"]
