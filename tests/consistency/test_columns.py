"""A whole step in one reduction gives every bucket the figures that its tokens alone would give."""

import math
from dataclasses import astuple, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from omni_rl.consistency import columns as columns_module
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare, compare_each, compare_step
from omni_rl.consistency.figures import Array, Metrics
from omni_rl.consistency.left_out import TIES, LeaveOut, kept_tokens
from omni_rl.consistency.limits import judge, limits_for
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import first_flip
from omni_rl.kinds import MIXED_STATE, OVERALL

LAYERS, CHOSEN = 2, 3
RULES: tuple[LeaveOut, ...] = get_args(LeaveOut)


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


@pytest.mark.parametrize("batch", [1, 40, 2**18])
def test_sequences_with_flips_are_found_however_many_are_looked_at_together(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "BATCH", batch)
    rng = np.random.default_rng(0)
    records = [random_record(rng, f"s{n}") for n in range(60)]
    for n in range(0, len(records), 2):
        own, other = records[n].rollout_experts, records[n].train_experts
        if own is not None and other is not None:  # of a model with more experts a token
            own, other = np.repeat(own, 2, axis=-1), np.repeat(other, 2, axis=-1)
            records[n] = replace(records[n], rollout_experts=own, train_experts=other)
    flipped = [n for n, record in enumerate(records) if first_flip(record) is not None]
    assert 5 < len(flipped) < sum(record.margins is not None for record in records)
    assert list(StepColumns.of(records).flipped) == flipped


def naive(rollout: Array, train: Array) -> dict[str, float]:
    """Some of the figures by numpy's own reductions."""
    with np.errstate(all="ignore"):
        d = train - rollout
        terms = {
            "logprob_abs_diff_mean": np.abs(d),
            "token_mult_prob_error": np.exp(np.abs(d)),
            "gen_kl_error": np.expm1(d) - d,
        }
        return {name: float(values.mean()) if len(d) else math.nan for name, values in terms.items()}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 12), rule=st.sampled_from(RULES))
def test_every_bucket_is_what_its_tokens_alone_would_give(seed: int, count: int, rule: LeaveOut) -> None:
    """A bucket is bit for bit what a step of that kind alone gives, and what reductions over the kept tokens give."""
    rng = np.random.default_rng(seed)
    records = [random_record(rng, f"s{i}") for i in range(count)]
    columns, ties = StepColumns.of(records), replace(TIES["float32"], leave_out=rule)
    step = compare_step(columns, ties)
    keeps = kept_tokens(columns, {n: record for n, record in enumerate(records) if first_flip(record)}, ties)
    keeps = np.ones(columns.tokens, np.bool_) if keeps is None else keeps
    kind_of = np.repeat(np.array(columns.kinds, dtype=object), np.diff(columns.offsets))
    position = np.concatenate([*(np.arange(len(r.rollout_logprobs)) for r in records), np.empty(0, np.int64)])
    assert list(step.by_kind) == list(dict.fromkeys(columns.kinds))
    for bucket, found in {OVERALL: step.overall, **step.by_kind}.items():
        of_kind = [record for record in records if bucket in (OVERALL, record.kind)]
        alone = compare_step(StepColumns.of(of_kind), ties)
        same(found.metrics, alone.overall.metrics)
        assert found.flips == alone.overall.flips == tuple(f for r in of_kind if (f := first_flip(r)) is not None)
        its = np.ones(columns.tokens, np.bool_) if bucket == OVERALL else kind_of == bucket
        bins = step.by_position[bucket]
        assert sum(m.tokens for m in bins.values()) == found.metrics.tokens == (its & keeps).sum()
        assert sum(m.router_flips for m in bins.values()) <= found.metrics.router_flips
        for (start, end), metrics in {(0, 1 << 30): found.metrics, **bins}.items():
            here = its & (position >= start) & (position < end)
            assert (metrics.tokens, metrics.excluded_tokens) == ((here & keeps).sum(), (here & ~keeps).sum())
            expected = naive(columns.rollout_logprobs[here & keeps], columns.train_logprobs[here & keeps])
            assert_allclose([getattr(metrics, name) for name in expected], list(expected.values()), rtol=1e-9)
    for n, error in enumerate(step.sequence_error):
        its = np.flatnonzero(keeps[columns.offsets[n] : columns.offsets[n + 1]]) + columns.offsets[n]
        mean = naive(columns.rollout_logprobs[its], columns.train_logprobs[its])["token_mult_prob_error"]
        assert_allclose(error, mean if len(its) else -math.inf, rtol=1e-9)


def test_tokens_outside_the_loss_mask_are_in_no_figure() -> None:
    """Figures are as if those tokens were not there, but for the positions of the others."""
    rollout, train = np.array([-1.0, -2.0, -0.5, -3.0]), np.array([-1.5, -9.0, -0.5, -3.25])
    columns = StepColumns.of([SampleRecord("a", "text", 1, rollout, train)])
    masked = replace(columns, loss_mask=np.array([True, False, True, True]))
    keep = [0, 2, 3]
    same(
        compare_step(masked).overall.metrics,
        compare([SampleRecord("a", "text", 1, rollout[keep], train[keep])]).metrics,
    )


@pytest.mark.parametrize("rule", RULES)
def test_figures_of_each_sequence_alone(rule: LeaveOut) -> None:
    rng = np.random.default_rng(11)
    records = [random_record(rng, f"s{i}") for i in range(12)]
    columns = StepColumns.of(records)
    columns = replace(columns, loss_mask=rng.random(columns.tokens) < 0.9, mixed_state=rng.random(columns.tokens) < 0.1)
    numbers = [7, 0, 11, 3]
    ties = replace(TIES["float32"], leave_out=rule)
    for number, found in zip(numbers, compare_each(columns.take(numbers), ties), strict=True):
        same(found, compare_step(columns.take([number]), ties).overall.metrics)
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
    judgement = judge({name: kept.figures for name, kept in found.by_kind.items()}, limits_for("float32"))
    assert {breach.kind for breach in judgement.breaches} == {"text", MIXED_STATE}


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
