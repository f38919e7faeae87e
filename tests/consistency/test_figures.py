"""The figures that spread and sequences make, by hand; and columns of several sequences taken apart and joined."""

import math
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import pytest

from omni_rl.consistency.cells import position_bins
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare, compare_each, compare_step
from omni_rl.consistency.figures import Grouping, Metrics, edges_of, reduce
from omni_rl.consistency.percentiles import percentiles
from omni_rl.consistency.records import SampleRecord
from omni_rl.kinds import OVERALL, WITH_FLIPS


def record(d: Sequence[float], name: str = "a", kind: str = "text", at: float = -1.0) -> SampleRecord:
    rollout = np.full(len(d), at)
    return SampleRecord(name, kind, 2, rollout, rollout + np.array(d))


def test_figures_of_answers_and_of_probabilities_by_hand() -> None:
    metrics = compare([record([math.log(2.0), -math.log(2.0)]), record([math.log(4.0)], "b")]).metrics
    assert metrics.seq_mult_prob_error_mean == pytest.approx((2 + 4) / 2)
    assert metrics.seq_mult_prob_error_max == pytest.approx(4)
    assert metrics.token_mult_prob_error == pytest.approx(8 / 3)
    assert metrics.chi2_seq == pytest.approx((1 + 16) / 2 - 1)
    assert metrics.chi2_token == pytest.approx((4 + 0.25 + 16) / 3 - 1)
    ratios = [2.0, 0.5, 4.0]
    assert metrics.ess == pytest.approx((sum(ratios) / 3) ** 2 / (sum(r * r for r in ratios) / 3))
    probabilities = [math.exp(-1) * abs(ratio - 1) for ratio in ratios]
    assert metrics.rollout_probs_diff_mean == pytest.approx(np.mean(probabilities))
    assert metrics.rollout_probs_diff_max == pytest.approx(max(probabilities))
    assert metrics.rollout_probs_diff_std == pytest.approx(np.std(probabilities))


def test_percentiles_of_a_hundred_and_one_tokens_are_tokens() -> None:
    d = np.random.default_rng(0).permutation(101) / 64
    metrics = compare([record(d.tolist())]).metrics
    assert (metrics.logprob_abs_diff_p50, metrics.logprob_abs_diff_p95, metrics.logprob_abs_diff_p99) == (
        50 / 64,
        95 / 64,
        99 / 64,
    )
    assert metrics.logprob_abs_diff_max == 100 / 64


@pytest.mark.parametrize(
    ("tokens", "excluded", "share"), [(0, 0, 0.0), (3, 1, 0.25), (0, 2, 1.0), (4, 0, 0.0), (0, 1, 1.0)]
)
def test_what_is_excluded_is_a_share_of_all_tokens(tokens: int, excluded: int, share: float) -> None:
    metrics = replace(compare([record([0.0])]).metrics, tokens=tokens, excluded_tokens=excluded)
    assert metrics.excluded_fraction == share


def test_the_figures_that_are_judged_have_the_widest_margin_of_the_flips() -> None:
    def flipped(name: str, margin: float) -> SampleRecord:
        experts = np.tile(np.array([0, 1], np.int16), (5, 1, 1))
        other, margins = experts.copy(), np.full((5, 1), margin, np.float32)
        other[3] = (0, 2)
        logprobs = np.full(4, -1.0)
        return SampleRecord(name, "text", 2, logprobs, logprobs, experts, other, margins)

    assert compare([record([0.0])]).figures["flip_margin_max"] == 0.0
    both = [flipped("a", 0.25), flipped("b", 0.5), flipped("c", 0.125)]
    assert compare(both).figures["flip_margin_max"] == 0.5
    assert math.isnan(compare([*both, flipped("d", math.nan)]).figures["flip_margin_max"])
    found = compare_step(StepColumns.of([flipped("a", 1e-7), record([0.0] * 4, "b")]))
    assert found.figures[OVERALL]["excluded_fraction"] == 2 / 8
    assert list(found.figures) == [OVERALL, "text", WITH_FLIPS]
    assert found.figures[WITH_FLIPS]["flip_margin_max"] == pytest.approx(1e-7)


def test_a_flip_counts_in_the_bin_of_the_first_token_that_it_touches() -> None:
    """After a prompt of two tokens, the choice at position 8 predicts token 7, and that at 9 token 8."""

    def flipped(name: str, kind: str, at: int) -> SampleRecord:
        experts = np.tile(np.array([0, 1], np.int16), (13, 1, 1))
        other = experts.copy()
        other[at] = (0, 2)
        margins = np.full((13, 1), 0.5, np.float32)
        return replace(record([0.0] * 12, name, kind), rollout_experts=experts, train_experts=other, margins=margins)

    records = [flipped(f"s{at}", "text" if at < 9 else "image", at) for at in (0, 1, 8, 9, 12)]
    found = compare_step(StepColumns.of(records)).by_position
    flips = {kind: [metrics.router_flips for metrics in bins.values()] for kind, bins in found.items()}
    assert flips == {OVERALL: [3, 2], "text": [3, 0], "image": [0, 2]}


@pytest.mark.parametrize(("longest", "last"), [(0, 8), (8, 8), (9, 16), (16, 16), (17, 32), (1000, 1024)])
def test_bins_of_positions_end_where_the_longest_answer_fits(longest: int, last: int) -> None:
    bins = position_bins(longest)
    assert bins[-1][1] == last if longest else bins == [(0, 8)][: len(bins)]
    assert [first for first, _ in bins[1:]] == [end for _, end in bins[:-1]]


def test_answers_that_fill_a_bin_exactly_have_no_tokens_in_the_next() -> None:
    found = compare_step(StepColumns.of([record([0.0] * 8 + [0.5] * 8), record([0.25] * 9, "b")])).by_position[OVERALL]
    assert {edges: metrics.tokens for edges, metrics in found.items()} == {(0, 8): 16, (8, 16): 9}
    assert found[(8, 16)].logprob_abs_diff_mean == (8 * 0.5 + 0.25) / 9
    assert found[(0, 8)].seq_mult_prob_error_max == pytest.approx(math.exp(0.25))


def test_a_group_of_whole_sequences_has_the_figures_of_their_step() -> None:
    whole = Grouping(np.array([0, 2, 3]), np.zeros(2, np.int64), 1)
    lr, lt = np.array([-1.0, -1.0, -2.0]), np.array([-1.5, -1.25, -1.0])
    (found,) = reduce(lr, lt, [whole])
    sequences = [record([-0.5, -0.25]), record([1.0], "b", at=-2.0)]
    assert astuple(found.metrics(0, 0, 0)) == astuple(compare(sequences).metrics)


def test_groups_may_be_in_any_order_and_empty() -> None:
    """Two runs of the third group lie around one of the first; the second has none."""
    lr = np.full(6, -1.0)
    lt = lr + np.array([0.5, 0.25, 1.0, 0.125, 0.75, 0.0])
    (found,) = reduce(lr, lt, [Grouping(edges_of(np.array([2, 1, 3])), np.array([2, 0, 2]), 3)])
    sizes, means = zip(
        *((found.size(n), found.metrics(n, n, n + 1).logprob_abs_diff_mean) for n in range(3)), strict=True
    )
    assert sizes == (1, 0, 5)
    assert (means[0], means[2]) == (1.0, pytest.approx(1.625 / 5))
    assert math.isnan(means[1])
    assert found.run_error.tolist() == pytest.approx(
        [math.e, (math.exp(0.5) + math.exp(0.25)) / 2, (math.exp(0.125) + math.exp(0.75) + 1) / 3]
    )
    assert (found.metrics(2, 4, 7).router_flips, found.metrics(2, 4, 7).excluded_tokens) == (4, 7)


def of_two() -> StepColumns:
    experts = np.tile(np.array([0, 1], np.int16), (4, 1, 1))
    margins = np.zeros((4, 1), np.float32)
    bare = record([0.5, 0.25], "a", "text")
    routed = replace(record([0.125] * 3, "b", "image"), rollout_experts=experts, train_experts=experts, margins=margins)
    return StepColumns.of([bare, routed])


def test_columns_know_their_size() -> None:
    columns = of_two()
    assert (columns.tokens, columns.nbytes) == (5, 2 * 5 * 8)
    assert StepColumns.of([]).tokens == 0


def test_sequences_are_taken_in_the_order_given_with_all_that_they_have() -> None:
    mask, mixed = np.array([True, False, True, True, False]), np.array([False, True, False, False, True])
    columns = replace(of_two(), loss_mask=mask, mixed_state=mixed)
    found = columns.take([1, 0])
    assert (found.samples, found.kinds, found.offsets.tolist()) == (["b", "a"], ["image", "text"], [0, 3, 5])
    assert (found.train_logprobs - found.rollout_logprobs).tolist() == [0.125] * 3 + [0.5, 0.25]
    assert found.loss_mask is not None
    assert found.mixed_state is not None
    assert found.loss_mask.tolist() == [True, True, False, True, False]
    assert found.mixed_state.tolist() == [False, False, True, False, True]
    assert list(found.choices) == [0]
    assert (of_two().take([0]).loss_mask, of_two().take([0]).mixed_state) == (None, None)


def test_joined_parts_keep_masks_and_choices_at_their_places() -> None:
    one, other = of_two(), of_two()
    mask, mixed = np.arange(5) != 2, np.arange(5) == 1
    found = StepColumns.joined([replace(one, loss_mask=mask), replace(other, mixed_state=mixed)])
    assert found.offsets.tolist() == [0, 2, 5, 7, 10]
    assert found.samples == ["a", "b", "a", "b"]
    assert sorted(found.choices) == [1, 3]
    assert found.loss_mask is not None
    assert found.mixed_state is not None
    assert found.loss_mask.tolist() == [*mask.tolist(), *[True] * 5]
    assert found.mixed_state.tolist() == [*[False] * 5, *mixed.tolist()]
    plain = StepColumns.joined([one, other])
    assert (plain.loss_mask, plain.mixed_state) == (None, None)
    assert StepColumns.joined([one]) is one
    routed = found.record(3)
    assert (routed.sample, routed.prompt_tokens, routed.rollout_experts is not None) == ("b", 2, True)
    assert found.record(2).rollout_experts is None


def test_each_sequence_has_the_flips_and_figures_of_its_own() -> None:
    experts = np.tile(np.array([0, 1], np.int16), (5, 1, 1))
    other, margins = experts.copy(), np.full((5, 1), 1e-7, np.float32)
    other[3] = (0, 2)
    flipped = replace(record([0.0, 0.0, 2.0, 2.0], "b"), rollout_experts=experts, train_experts=other, margins=margins)
    plain, last = compare_each(StepColumns.of([record([0.5, 0.25]), flipped]))
    assert (plain.tokens, plain.router_flips, plain.excluded_tokens) == (2, 0, 0)
    assert (last.tokens, last.router_flips, last.excluded_tokens, last.logprob_abs_diff_max) == (2, 1, 2, 0.0)


@pytest.mark.parametrize(
    ("values", "wanted", "expected"),
    [
        ([3.0], (50, 99), [3.0, 3.0]),
        ([1.0, 2.0], (50, 95), [1.5, 1.95]),
        ([5.0, 1.0, 3.0], (0, 25, 50, 100), [1.0, 2.0, 3.0, 5.0]),
        ([1.0, math.inf], (40,), [math.inf]),
        ([math.inf, math.inf, 1.0], (50,), [math.inf]),
    ],
)
def test_percentiles_lie_between_neighbours(
    values: list[float], wanted: tuple[float, ...], expected: list[float]
) -> None:
    assert percentiles(np.array(values), wanted) == pytest.approx(expected)


def test_no_figure_is_known_of_no_token() -> None:
    metrics = compare([record([])]).metrics
    for name, value in vars(metrics).items():
        counts = name in ("tokens", "router_flips", "excluded_tokens")
        assert value == 0 if counts else math.isnan(value), name
    assert isinstance(metrics, Metrics)
