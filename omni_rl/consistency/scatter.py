"""How far a mean over few tokens may lie from agreement because one or two tokens do.

The field's limits are for means over whole batches. A kind of prompt may have 32 tokens in a step, and in bfloat16 a
router's tie that falls the other way moves a token by about 1: alone it lifts such a mean over a limit.
"""

import math
from collections.abc import Callable, Mapping

ERRORS = 2.0
"""Standard errors that a mean is given."""
TIE = 2.0
"""The abs d that a single token may have for no reason but a tie; what goes beyond it is never put down to chance."""

_OF_TOKEN: Mapping[str, Callable[[float], float]] = {
    "logprob_abs_diff_mean": lambda d: d,
    "token_mult_prob_error": math.expm1,
    "gen_kl_error": lambda d: math.expm1(d) - d,
}
"""What a token adds to a mean, at most, above the value of agreement."""


def scatter(metric: str, above: float, figures: Mapping[str, float]) -> float:
    """Of a metric that lies `above` its value of agreement, in the figures of one bucket: `ERRORS` standard errors, at
    most. 0 for metrics that are no means over tokens, and where `figures` lack the largest abs d.

    Values between 0 and M whose mean is m have a variance of (M - m) m at most (Bhatia and Davis, 2000): that is
    reached where few tokens are far off and the others are not at all, and far from it where all are. NaN and infinity
    get no allowance.
    """
    largest = figures.get("logprob_abs_diff_max", math.nan)
    if metric not in _OF_TOKEN or math.isnan(largest):
        return 0.0
    most = _OF_TOKEN[metric](min(largest, TIE))
    return ERRORS * math.sqrt(max(0.0, (most - above) * above) / figures["tokens"])
