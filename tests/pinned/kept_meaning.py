"""What a later version may do to an answer: add to it. What was there stays, with its value or at least its type."""

import math
from collections.abc import Callable, Mapping
from typing import Any

KINDS = {"text", "image", "audio", "video", "mixed"}
EXACT = 1e-12
"""Relative: a figure that was stored is read as it was stored; one that is summed anew may round otherwise."""


def lost(then: Any, now: Any, where: str = "") -> list[str]:
    """One sentence for each part of `then` that `now` lacks or has otherwise. Keys may be added, entries of lists not.

    Integers and floats of one value are equal, and so are two values that are not numbers.
    """
    if isinstance(then, dict) and isinstance(now, dict):
        return _in_entries(lost, then, now, where)
    if isinstance(then, list) and isinstance(now, list):
        if len(then) != len(now):
            return [f"{where} had {len(then)} entries, now {len(now)}"]
        pairs = enumerate(zip(then, now, strict=True))
        return [sentence for place, (old, new) in pairs for sentence in lost(old, new, f"{where}/{place}")]
    return [] if _equal(then, now) else [f"{where} was {then!r}, now {now!r}"]


def lost_shape(then: Any, now: Any, where: str = "") -> list[str]:
    """As `lost`, for values that differ from run to run: keys and types stay. Of lists the first entries are compared;
    null tells nothing of a type."""
    if isinstance(then, dict) and isinstance(now, dict):
        return _in_entries(lost_shape, then, now, where)
    if isinstance(then, list) and isinstance(now, list):
        return lost_shape(then[0], now[0], f"{where}/0") if then and now else []
    if then is None or now is None or _kind(then) == _kind(now):
        return []
    return [f"{where} was of type {_kind(then)}, now {_kind(now)}"]


def _in_entries(
    compare: Callable[[Any, Any, str], list[str]], then: dict[str, Any], now: dict[str, Any], where: str
) -> list[str]:
    gone = [f"{where}/{key} is gone" for key in then if key not in now]
    both = [key for key in then if key in now]
    return gone + [sentence for key in both for sentence in compare(then[key], now[key], f"{where}/{key}")]


def _equal(then: Any, now: Any) -> bool:
    if _kind(then) == _kind(now) == "number":
        return bool(math.isclose(then, now, rel_tol=EXACT) or (math.isnan(then) and math.isnan(now)))
    return bool(_kind(then) == _kind(now) and then == now)


def _kind(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


def assert_agrees(report: Mapping[str, Any]) -> None:
    """A demo's report means what it did: both policies agreed, in every step, kind of prompt and leg."""
    assert (report["schema"], report["verdict"], report["breaches"]) == (1, "agree", [])
    assert report["steps"]
    for step in report["steps"]:
        assert set(step["by_modality"]) == KINDS
        for figures in (step["overall"], *step["by_modality"].values(), *report["legs"].values()):
            assert figures["tokens"] + figures["excluded_tokens"] > 0
            assert 0 <= figures["logprob_abs_diff_mean"] < 1e-5
    assert set(report["legs"]) == {"train_vs_prefill", "prefill_vs_decode", "batch_vs_alone"}
