"""Writes figures as people and JSON read them: one that is NaN says so in words, or is null, wherever it stands."""

import math
from collections.abc import Mapping

NOT_A_NUMBER = "not a number"


def shown(value: float | None, form: str) -> str:
    """Return `value` in the `form` of a format string. NaN is written in words; so is None, since JSON has null in the
    place of NaN and infinity."""
    if value is None or math.isnan(value):
        return NOT_A_NUMBER
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    return format(value, form)


def number_or_none(value: float | None) -> float | None:
    """Return `value`, or None for NaN and infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def mean_abs(figures: Mapping[str, float | None]) -> str:
    """Return the mean difference of a kind as text. A kind without tokens has no figures, and nothing is wrong with
    it."""
    return "no tokens" if figures["tokens"] == 0 else f"mean |d| {shown(figures['logprob_abs_diff_mean'], '.2e')}"
