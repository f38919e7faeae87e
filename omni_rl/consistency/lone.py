"""What one token does to a mean over few.

The field's limits are for means over whole batches. A kind of prompt may have 32 tokens in a step, and in bfloat16 a
router's tie that falls the other way moves a token by about 1: alone it lifts such a mean over a limit.
"""

import math
from collections.abc import Callable, Mapping

TIE = 2.0
"""The abs d that a token may have for no reason but a tie; what goes beyond it is never put down to one."""

_OF_TOKEN: Mapping[str, Callable[[float], float]] = {
    "logprob_abs_diff_mean": lambda d: d,
    "token_mult_prob_error": math.expm1,
    "gen_kl_error": lambda d: math.expm1(d) - d,
}
"""What a token adds to a metric above its value of agreement, at most: a KL is less where d is negative."""


def lone_token(metric: str, figures: Mapping[str, float]) -> float:
    """What the token that is furthest off adds to a metric, at most, by the figures of its bucket. 0 for metrics that
    are no means over tokens, and where `figures` lack the largest abs d."""
    largest = figures.get("logprob_abs_diff_max", math.nan)
    if metric not in _OF_TOKEN or math.isnan(largest):
        return 0.0
    return _OF_TOKEN[metric](min(largest, TIE)) / figures["tokens"]
