"""Metrics against hand-computed numbers and against mpmath-free identities that do not share their code."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_rl.consistency.cells import position_bins
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare, compare_each, compare_step, furthest
from omni_rl.consistency.figures import REPORTED, k3
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.shown import mean_abs, shown
from omni_rl.kinds import OVERALL


def record(rollout: list[float], train: list[float], kind: str = "text", sample: str = "s") -> SampleRecord:
    return SampleRecord(sample, kind, 3, np.array(rollout), np.array(train))


def test_hand_computed_values() -> None:
    metrics = compare([record([-1.0, -2.0], [-1.5, -1.0])]).metrics
    d = (-0.5, 1.0)
    assert metrics.tokens == 2
    assert metrics.logprob_abs_diff_mean == pytest.approx(0.75)
    assert metrics.logprob_abs_diff_max == pytest.approx(1.0)
    assert metrics.logprob_abs_diff_p50 == pytest.approx(0.75)
    assert metrics.token_mult_prob_error == pytest.approx((math.exp(0.5) + math.e) / 2)
    assert metrics.gen_kl_error == pytest.approx(sum(math.exp(x) - 1 - x for x in d) / 2)
    assert metrics.policy_kl_error == pytest.approx(sum(math.exp(-x) - 1 + x for x in d) / 2)
    assert metrics.rollout_probs_diff_max == pytest.approx(math.exp(-1.0) - math.exp(-2.0))
    assert metrics.chi2_token == pytest.approx((math.exp(-1) + math.exp(2)) / 2 - 1)
    assert metrics.chi2_seq == pytest.approx(math.exp(2 * 0.5) - 1)
    ratios = [math.exp(x) for x in d]
    assert metrics.ess == pytest.approx(sum(ratios) ** 2 / (2 * sum(r * r for r in ratios)))


def test_js_divergence_by_its_definition() -> None:
    lr, lt = -1.2, -0.7
    m = math.log((math.exp(lt) + math.exp(lr)) / 2)
    expected = 0.5 * (math.exp(m - lt) - 1 - (m - lt)) + 0.5 * (math.exp(m - lr) - 1 - (m - lr))
    assert compare([record([lr], [lt])]).metrics.js_divergence_error == pytest.approx(expected)


def test_k3_does_not_underflow() -> None:
    assert k3(np.array([1e-8]))[0] == pytest.approx(0.5e-16, rel=1e-2, abs=0)
    assert np.exp(np.float32(1e-8)) - 1 - np.float32(1e-8) < 0  # what a float32 k3 would give


def test_identical_sides_are_perfect() -> None:
    metrics = compare([record([-1.0, -3.0], [-1.0, -3.0])]).metrics
    assert metrics.token_mult_prob_error == 1
    assert metrics.gen_kl_error == metrics.logprob_abs_diff_max == metrics.chi2_seq == 0
    assert metrics.ess == 1


def test_nan_is_reported_not_dropped() -> None:
    metrics = compare([record([-1.0, float("nan")], [-1.0, -1.0])]).metrics
    assert math.isnan(metrics.logprob_abs_diff_mean)
    assert math.isnan(metrics.logprob_abs_diff_max)


def test_an_empty_set_has_no_figures() -> None:
    metrics = compare([]).metrics
    assert metrics.tokens == 0
    assert math.isnan(metrics.logprob_abs_diff_mean)


def test_kinds_and_sequences_are_told_apart() -> None:
    records = [record([-1.0], [-1.0], "text", "a"), record([-1.0], [-2.0], "image", "b")]
    columns = StepColumns.of(records)
    by_kind = compare_step(columns).by_kind
    assert {k: c.metrics.logprob_abs_diff_mean for k, c in by_kind.items()} == {"text": 0, "image": 1}
    assert [metrics.logprob_abs_diff_mean for metrics in compare_each(columns)] == [0, 1]


def test_position_bins_double_and_cover() -> None:
    assert position_bins(33) == [(0, 8), (8, 16), (16, 32), (32, 64)]
    columns = StepColumns.of([record([-1.0] * 20, [-1.0] * 16 + [-3.0] * 4)])
    late = compare_step(columns).by_position[OVERALL]
    assert [m.tokens for m in late.values()] == [8, 8, 4]
    assert [m.logprob_abs_diff_max for m in late.values()] == [0, 0, 2]


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=50))
def test_invariants(pairs: list[tuple[float, float]]) -> None:
    rollout, train = [p[0] for p in pairs], [p[1] for p in pairs]
    here, swapped = compare([record(rollout, train)]).metrics, compare([record(train, rollout)]).metrics
    assert here.gen_kl_error >= 0
    assert here.gen_kl_error == pytest.approx(swapped.policy_kl_error)
    assert here.js_divergence_error == pytest.approx(swapped.js_divergence_error)
    assert here.token_mult_prob_error >= 1
    assert 0 < here.ess <= 1 + 1e-12
    assert here.logprob_abs_diff_p50 <= here.logprob_abs_diff_p99 <= here.logprob_abs_diff_max


def test_the_furthest_replica_is_told_of_kind_by_kind() -> None:
    """One that is not a number is further than any, wherever it stands, and a kind need not be every replica's."""
    near, far, broken = ({"logprob_abs_diff_mean": mean} for mean in (0.1, 0.2, math.nan))
    found = furthest([{"text": near, "image": far}, {"text": far, "image": near}, {"text": near, "with_flips": near}])
    assert found == {"text": far, "image": far, "with_flips": near}
    for replicas in ([{"text": broken}, {"text": far}], [{"text": far}, {"text": broken}]):
        assert furthest(replicas) == {"text": broken}


def test_lengths_must_match() -> None:
    with pytest.raises(ValueError, match="sample s"):
        record([-1.0], [-1.0, -2.0])


def test_the_report_has_the_published_names() -> None:
    assert tuple(compare([record([-1.0], [-1.0])]).metrics.report()) == REPORTED


@pytest.mark.parametrize("lost", [math.nan, None])
def test_what_is_not_a_number_is_shown_in_words(lost: float | None) -> None:
    assert shown(lost, ".3g") == "not a number"
    assert mean_abs({"tokens": 3, "logprob_abs_diff_mean": lost}) == "mean |d| not a number"
    assert (shown(math.inf, ".3g"), shown(-math.inf, ".3g"), shown(0.12345, ".3g")) == (
        "infinite",
        "-infinite",
        "0.123",
    )
