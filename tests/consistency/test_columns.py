"""A whole step in one reduction gives the figures that record by record reduction gives, bit for bit."""

import math
from dataclasses import asdict, astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare_each, compare_step
from omni_rl.consistency.limits import judge, limits_for
from omni_rl.consistency.metrics import Metrics, by_kind, by_position, by_sequence, compare
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import LeaveOut
from omni_rl.kinds import MIXED_STATE, OVERALL

LAYERS, CHOSEN = 2, 3


def same(a: Metrics, b: Metrics) -> None:
    assert_array_equal(astuple(a), astuple(b))


def random_record(rng: np.random.Generator, name: str) -> SampleRecord:
    prompt, tokens = int(rng.integers(1, 6)), int(rng.integers(0, 70))
    rollout = -rng.exponential(1.0, tokens)
    train = rollout + rng.normal(0, 10.0 ** rng.integers(-7, 1), tokens)
    if tokens and rng.random() < 0.1:
        train[rng.integers(tokens)] = rng.choice([np.nan, -np.inf])
    kind = str(rng.choice(["text", "image", "mixed"]))
    if tokens == 0 or rng.random() < 0.5:
        return SampleRecord(name, kind, prompt, rollout, train)
    shape = (prompt + tokens - 1, LAYERS, CHOSEN)
    chosen = rng.integers(0, 8, shape).astype(np.int16)
    other = chosen.copy()
    for _ in range(rng.integers(0, 3)):
        other[rng.integers(shape[0]), rng.integers(LAYERS), 0] += 8
    margins = (rng.random(shape[:2]) * rng.choice([1e-6, 1.0])).astype(np.float32)  # ties, or none
    return SampleRecord(name, kind, prompt, rollout, train, chosen, other, margins)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 12),
    rule=st.sampled_from(["nothing", "flipped", "after_flip"]),
)
def test_equal_to_record_by_record(seed: int, count: int, rule: LeaveOut) -> None:
    rng = np.random.default_rng(seed)
    records = [random_record(rng, f"s{i}") for i in range(count)]
    step = compare_step(StepColumns.of(records), leave_out=rule)
    whole = compare(records, leave_out=rule)
    same(step.overall.metrics, whole.metrics)
    assert step.overall.flips == whole.flips
    expected = by_kind(records, leave_out=rule)
    assert list(step.by_kind) == list(expected)
    for kind, comparison in expected.items():
        same(step.by_kind[kind].metrics, comparison.metrics)
        assert step.by_kind[kind].flips == comparison.flips
    for kind in (OVERALL, *expected):
        of_kind = [record for record in records if kind in (OVERALL, record.kind)]
        bins = by_position(of_kind, leave_out=rule)
        assert step.by_position[kind].keys() <= bins.keys()
        for edges, metrics in bins.items():
            if edges in step.by_position[kind]:
                same(step.by_position[kind][edges], metrics)
            else:
                assert metrics.tokens == metrics.excluded_tokens == 0
    alone = [c.metrics.seq_mult_prob_error_max for c in by_sequence(records, leave_out=rule).values()]
    assert_array_equal(
        step.sequence_error, [-math.inf if math.isnan(x) and not n else x for x, n in with_tokens(alone, records, rule)]
    )


def with_tokens(values: list[float], records: list[SampleRecord], rule: LeaveOut) -> list[tuple[float, int]]:
    return [(x, compare([record], leave_out=rule).metrics.tokens) for x, record in zip(values, records, strict=True)]


def test_tokens_outside_the_loss_mask_are_in_no_figure() -> None:
    """As if they were not there, but for the positions of the others."""
    rollout, train = np.array([-1.0, -2.0, -0.5, -3.0]), np.array([-1.5, -9.0, -0.5, -3.25])
    columns = StepColumns.of([SampleRecord("a", "text", 1, rollout, train)])
    masked = replace(columns, loss_mask=np.array([True, False, True, True]))
    keep = [0, 2, 3]
    same(
        compare_step(masked).overall.metrics,
        compare([SampleRecord("a", "text", 1, rollout[keep], train[keep])]).metrics,
    )


@pytest.mark.parametrize("rule", ["nothing", "flipped", "after_flip"])
def test_figures_of_each_sequence_alone(rule: LeaveOut) -> None:
    rng = np.random.default_rng(11)
    records = [random_record(rng, f"s{i}") for i in range(12)]
    columns = StepColumns.of(records)
    columns = replace(columns, loss_mask=rng.random(columns.tokens) < 0.9, mixed_state=rng.random(columns.tokens) < 0.1)
    numbers = [7, 0, 11, 3]
    for number, found in zip(numbers, compare_each(columns.take(numbers), leave_out=rule), strict=True):
        same(found, compare_step(columns.take([number]), leave_out=rule).overall.metrics)
    assert compare_each(columns.take([])) == []


def test_tokens_of_mixed_state_are_judged_apart() -> None:
    """A kept state is as wrong as the update is large: that is not the kinds' disagreement, and not left out either."""
    rollout, train = np.array([-1.0, -2.0, -0.5, -3.0]), np.array([-1.0, -2.0, -0.75, -3.5])
    records = [SampleRecord(kind, kind, 1, rollout, train) for kind in ("image", "text")]
    columns = StepColumns.of(records)
    mixed = np.array([False, False, True, True] + [False] * 4)
    found = compare_step(replace(columns, mixed_state=mixed, loss_mask=np.arange(8) != 0))
    assert list(found.by_kind) == ["image", "text", MIXED_STATE]
    same(found.by_kind["image"].metrics, compare([SampleRecord("", "image", 1, rollout[1:2], train[1:2])]).metrics)
    same(found.by_kind[MIXED_STATE].metrics, compare([SampleRecord("", "image", 1, rollout[2:], train[2:])]).metrics)
    assert found.overall.metrics.tokens == 5
    assert found.overall.metrics.excluded_tokens == 0
    joined = StepColumns.joined([columns, replace(columns, mixed_state=mixed)])
    assert compare_step(joined).by_kind[MIXED_STATE].metrics.tokens == 2
    judgement = judge({name: asdict(kept.metrics) for name, kept in found.by_kind.items()}, limits_for("float32"))
    assert {breach.bucket for breach in judgement.breaches} == {"text", MIXED_STATE}


def test_positions_are_those_of_the_unmasked_answer() -> None:
    rollout = np.full(20, -1.0)
    train = np.where(np.arange(20) == 18, -2.0, -1.0)
    columns = StepColumns.of([SampleRecord("a", "text", 1, rollout, train)])
    mask = np.arange(20) >= 16
    found = compare_step(replace(columns, loss_mask=mask)).by_position[OVERALL]
    assert {edges: (m.tokens, m.logprob_abs_diff_max) for edges, m in found.items()} == {(16, 32): (4, 1.0)}


def test_parts_joined_are_the_step() -> None:
    rng = np.random.default_rng(5)
    records = [random_record(rng, f"s{i}") for i in range(9)]
    parts = [StepColumns.of(records[:4]), StepColumns.of([]), StepColumns.of(records[4:])]
    joined = compare_step(StepColumns.joined(parts))
    same(joined.overall.metrics, compare(records).metrics)
    assert {flip.sample for flip in joined.overall.flips} == {flip.sample for flip in compare(records).flips}


def test_the_worst_sequences_come_first_and_nan_before_all() -> None:
    off = {"good": -1.0, "bad": -4.0, "broken": math.nan, "poor": -2.0}
    records = [SampleRecord(name, "text", 1, np.array([-1.0]), np.array([lt])) for name, lt in off.items()]
    records.append(SampleRecord("empty", "text", 1, np.empty(0), np.empty(0)))
    step = compare_step(StepColumns.of(records))
    assert [records[n].sample for n in step.worst(9)] == ["broken", "bad", "poor", "good"]
    assert [records[n].sample for n in step.worst(2)] == ["broken", "bad"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_step_without_tokens_has_no_figures(count: int) -> None:
    records = [SampleRecord("empty", "text", 1, np.empty(0), np.empty(0))] * count
    step = compare_step(StepColumns.of(records))
    assert step.overall.metrics.tokens == 0
    assert math.isnan(step.overall.metrics.logprob_abs_diff_mean)
    assert step.worst(3) == []


@pytest.mark.parametrize(("rollout", "train"), [(-1.0, -1e6), (-1e6, -1.0), (-1.0, 1e300), (-math.inf, -1.0)])
def test_logprobs_that_are_absurdly_far_apart_still_have_figures(rollout: float, train: float) -> None:
    """A ratio of 0 or infinity is a finding: exp(±1e6) neither raises nor warns."""
    record = SampleRecord("a", "text", 1, np.array([rollout]), np.array([train]))
    metrics = compare_step(StepColumns.of([record])).overall.metrics
    assert metrics.token_mult_prob_error == math.inf
    assert not metrics.ess <= 1
