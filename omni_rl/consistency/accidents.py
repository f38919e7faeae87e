"""How much one accident of rounding can add to a figure of few tokens.

The field's limits are for means over whole batches. A kind of prompt may have 32 tokens in a step, and in bfloat16 a
router's tie that falls the other way moves a token's logprob by about 1, and through the sequence's state now and then
another token's: these alone lift such a mean over a limit. In float32 the tie leaves out the rest of its answer, which
is a large share of few answers.
"""

import math
from collections.abc import Callable, Mapping

from omni_rl.consistency.left_out import FEW, MOST

EXCLUDED = "excluded_fraction"

_OF_TOKEN: Mapping[str, Callable[[float], float]] = {
    "logprob_abs_diff_mean": lambda d: d,
    "token_mult_prob_error": math.expm1,
    "gen_kl_error": lambda d: math.expm1(d) - d,
}
"""What one token adds to a metric above the metric's value of agreement, at most, by its abs d: a KL is less where d is
negative."""


SECOND = 8
"""The fewest tokens of which one accident may move two."""


def one_accident(metric: str, figures: Mapping[str, float]) -> float:
    """Return what one accident adds to a metric, at most, by the figures of the metric's kind of prompt.

    To a mean over tokens an accident adds what the two tokens that are furthest off add, or the one furthest where
    there are fewer than `SECOND` tokens; 0.0 where `figures` lack the largest abs d. To the share that is left out it
    adds one sequence's flip, or `FEW` tokens of several. To other metrics it adds 0.0.
    """
    if metric == EXCLUDED:
        accidents = 1.0 if figures["excluded_tokens"] < FEW else max(1.0, figures["router_flips"])
        return figures[EXCLUDED] / accidents
    largest = figures.get("logprob_abs_diff_max", math.nan)
    if metric not in _OF_TOKEN or math.isnan(largest):
        return 0.0
    return sum(_OF_TOKEN[metric](min(d, MOST)) for d in (largest, _second(largest, figures))) / figures["tokens"]


def _second(largest: float, figures: Mapping[str, float]) -> float:
    """Return the second largest abs d, or 0.0 where it is not known or there are too few or too many tokens.

    The 99th percentile of up to 101 tokens lies between the two largest, `share` of the way, as it is linear between
    neighbours. Of more, a second token is too small a part of a mean to be spared.
    """
    tokens, p99 = figures["tokens"], figures.get("logprob_abs_diff_p99", math.nan)
    share = 1 - (tokens - 1) / 100
    if not SECOND <= tokens <= 101 or math.isnan(p99):
        return 0.0
    return max(0.0, (p99 - share * largest) / (1 - share))
