"""A flip excludes exactly what it touches, and the limits catch what they should."""

import numpy as np
import pytest

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare_step
from omni_rl.consistency.metrics import by_position, compare
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import LeaveOut, first_flip, kept
from omni_rl.consistency.thresholds import THRESHOLDS, breaches, left_out

PROMPT, SAMPLED, LAYERS = 4, 6, 2


def record(flip_at: tuple[int, int] | None, margin: float = 1e-7, error: float = 0.0) -> SampleRecord:
    """A record whose train logprobs are off by 1 wherever a flip at `flip_at` (position, layer) can reach."""
    positions = PROMPT + SAMPLED - 1
    experts = np.tile(np.array([0, 1], dtype=np.int16), (positions, LAYERS, 1))
    other = experts[:, :, ::-1].copy()  # the same experts in another order: no flip
    rollout = np.full(SAMPLED, -1.0)
    train = rollout + error
    margins = np.full((positions, LAYERS), 0.5, dtype=np.float32)
    if flip_at:
        position, layer = flip_at
        other[position, layer] = (0, 2)
        other[position + 1 :] = (3, 4)  # what follows flips too, as a consequence
        margins[position, layer] = margin
        predicting = PROMPT - 1 + np.arange(SAMPLED)
        train = np.where(predicting >= position, -2.0, train)
    return SampleRecord("s", "text", PROMPT, rollout, train, experts, other, margins)


@pytest.mark.parametrize(("position", "first"), [(0, 0), (3, 0), (4, 1), (8, 5)])
def test_exactly_the_touched_tokens_are_left_out(position: int, first: int) -> None:
    one = record((position, 1))
    flip = first_flip(one)
    assert flip is not None
    assert (flip.position, flip.layer) == (position, 1)
    assert flip.margin == pytest.approx(1e-7)
    assert kept(one, "after_flip").tolist() == [True] * first + [False] * (SAMPLED - first)
    metrics = compare([one]).metrics
    assert (metrics.tokens, metrics.excluded_tokens, metrics.router_flips) == (first, SAMPLED - first, 1)
    if first:
        assert metrics.logprob_abs_diff_max == 0
    everything = compare([one], leave_out="nothing").metrics
    assert (everything.tokens, everything.excluded_tokens) == (SAMPLED, 0)
    assert everything.logprob_abs_diff_max == 1


def test_only_flipped_positions_can_be_left_out() -> None:
    one = record(None)
    experts = one.train_experts
    assert experts is not None
    experts[0, 0] = experts[PROMPT + 1, 1] = (6, 7)  # in the prompt, and where sampled token 2 is predicted
    assert kept(one, "flipped").tolist() == [True, True, False, True, True, True]
    metrics = compare([one], leave_out="flipped").metrics
    assert (metrics.tokens, metrics.excluded_tokens, metrics.router_flips) == (SAMPLED - 1, 1, 1)


def test_the_order_of_experts_is_no_flip() -> None:
    assert first_flip(record(None)) is None


def test_by_position_counts_what_it_leaves_out() -> None:
    bins = by_position([record((6, 0))])
    assert sum(m.tokens + m.excluded_tokens for m in bins.values()) == SAMPLED
    assert sum(m.router_flips for m in bins.values()) == 1


def test_clean_float32_agrees_and_each_limit_bites() -> None:
    limits = THRESHOLDS["float32"]
    assert breaches(compare([record(None, error=5e-6)]), limits) == []
    assert any("logprob_abs_diff_mean" in b for b in breaches(compare([record(None, error=2e-5)]), limits))
    assert any("logprob_abs_diff_max" in b for b in breaches(compare([record(None, error=2e-4)]), limits))
    assert breaches(compare([record((6, 0))]), limits) == []
    assert any("not a tie" in b for b in breaches(compare([record((6, 0), margin=0.01)]), limits))


def test_too_many_left_out_tokens_are_a_breach_of_the_run() -> None:
    limits = THRESHOLDS["float32"]
    assert left_out(compare([*([record(None)] * 2000), record((6, 0))]), limits) == []
    assert "3 of 6 tokens" in left_out(compare([record((6, 0))]), limits)[0]


def test_nan_never_agrees() -> None:
    for limits in THRESHOLDS.values():
        assert breaches(compare([record(None, error=float("nan"))]), limits)


def test_bfloat16_uses_the_published_limit() -> None:
    assert breaches(compare([record(None, error=0.04)]), THRESHOLDS["bfloat16"]) == []
    assert breaches(compare([record(None, error=0.06)]), THRESHOLDS["bfloat16"])


def test_what_follows_a_flip_that_is_no_tie_is_judged() -> None:
    """A fault flips the router too: if that left its tokens out, nothing would be left to see it by."""
    tie, fault = record((3, 0), margin=1e-7), record((3, 0), margin=1e-3)
    assert not kept(tie, "after_flip").any()
    assert kept(fault, "after_flip").all()
    assert compare([fault]).metrics.logprob_abs_diff_mean == 1.0


@pytest.mark.parametrize("rule", ["flipped", "after_flip"])
def test_what_is_no_number_is_never_left_out(rule: LeaveOut) -> None:
    one = record((0, 0))
    one.train_logprobs[4] = np.nan
    assert kept(one, rule).tolist() == [False] * 4 + [True, False]
    assert np.isnan(compare([one], leave_out=rule).metrics.logprob_abs_diff_mean)


def flipped(tokens: int, flips: int, kind: str = "image") -> SampleRecord:
    """A record of `tokens` whose first `flips` are predicted at flipped positions, and are off by 1."""
    experts = np.tile(np.array([0, 1], dtype=np.int16), (PROMPT + tokens - 1, LAYERS, 1))
    other = experts.copy()
    other[PROMPT - 1 : PROMPT - 1 + flips, 0] = (2, 3)
    rollout, off = np.full(tokens, -1.0), np.arange(tokens) < flips
    return SampleRecord(
        f"{kind}-{tokens}-{flips}", kind, PROMPT, rollout, rollout - off, experts, other, np.ones(other.shape[:2], "f4")
    )


@pytest.mark.parametrize(
    ("records", "excluded"),
    [
        ([flipped(16, 3), flipped(16, 4)], 7),
        ([flipped(16, 3), flipped(16, 5)], 0),
        ([flipped(16, 8), flipped(64, 0)], 8),
        ([flipped(2, 1), flipped(2, 2)], 3),
        ([flipped(16, 8), flipped(16, 2, "text")], 2),
    ],
)
def test_flips_of_a_quarter_of_a_kind_are_no_accidents(records: list[SampleRecord], excluded: int) -> None:
    assert compare(records, leave_out="flipped").metrics.excluded_tokens == excluded
    by_column = compare_step(StepColumns.of(records), leave_out="flipped")
    assert by_column.overall.metrics.excluded_tokens == excluded
