"""Charts at the edges of a width, of the points that were asked for, and of a range."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from omni_rl.consistency.comparison import compare_step
from omni_rl.errors import ConflictError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.run_list import Wanted
from omni_rl.ledger.types import NewStep, StepKey
from omni_rl_bench.history import bring_in

from .steps import attempt_numbers, line, post, records, sealed, steps_of

MEAN, KL = "logprob_abs_diff_mean", "gen_kl_error"


@pytest.fixture
def run(ledger: Ledger) -> Ledger:
    ledger.put_run("run", {}).result()
    return ledger


def test_a_chart_reads_the_narrowest_buckets_that_are_few_enough(run: Ledger) -> None:
    """Fewer than 2048 of them."""
    of = {2047: 1, 2048: 4, 8188: 4, 8189: 16, 2047 * 64: 64, 2047 * 64 + 1: 256}
    for attempt, span in enumerate(of):
        values = {MEAN: np.array([1.0, 3.0, 2.0])}
        bring_in(run, "run", attempt, np.array([7, 8, 7 + span - 1]), values).result()
    found = {span: run.timeline("run", attempt, [MEAN], points=5000) for attempt, span in enumerate(of)}
    assert {span: chart.width for span, chart in found.items()} == of
    for span, chart in found.items():
        assert (chart.first[0], chart.last[-1], chart.steps.sum()) == (7, 7 + span - 1, 3)
        assert (chart.low[MEAN].min(), chart.high[MEAN].max()) == (1.0, 3.0)


def test_the_widest_buckets_are_read_however_far_apart_steps_are(run: Ledger) -> None:
    numbers = np.array([0, 10**9, 2**40])
    bring_in(run, "run", 0, numbers, {MEAN: np.array([1.0, 5.0, 2.0])}).result()
    found = run.timeline("run", 0, [MEAN], points=1000)
    assert found.width == 4**10
    assert found.steps.tolist() == [1, 1, 1]
    assert all(first <= number <= last for first, number, last in zip(found.first, numbers, found.last, strict=True))


@pytest.mark.parametrize(("points", "width"), [(50, 1), (49, 2), (26, 2), (25, 3), (10, 6), (1, 51)])
def test_as_many_points_as_were_asked_for_are_as_they_are_and_one_more_is_put_together(
    run: Ledger, points: int, width: int
) -> None:
    values = np.random.default_rng(0).random(50)
    bring_in(run, "run", 0, np.arange(50), {MEAN: values}).result()
    found = run.timeline("run", 0, [MEAN], points=points)
    assert (found.width, len(found.first) <= points) == (width, True)
    starts = np.arange(0, 50, width)
    assert_array_equal(found.first, starts)
    assert_array_equal(found.last, np.minimum(starts + width, 50) - 1)
    assert_array_equal(found.steps, [len(values[start : start + width]) for start in starts])
    least = [values[start : start + width].min() for start in starts]
    most = [values[start : start + width].max() for start in starts]
    assert_array_equal((found.low[MEAN], found.high[MEAN]), (least, most))
    if width == 1:
        assert_array_equal((steps_of(found), line(found, MEAN)), (np.arange(50), values))
    else:
        assert_array_equal(line(found, MEAN), np.array([least, most]).T.reshape(-1))
        assert_array_equal(steps_of(found), np.array([found.first, found.last]).T.reshape(-1))


def test_a_range_has_both_its_ends(run: Ledger) -> None:
    bring_in(run, "run", 0, np.arange(10, 20), {MEAN: np.arange(10, 20).astype(np.float64)}).result()
    for first, last in ((12, 15), (None, 12), (18, None), (10, 10), (19, 99), (0, 10)):
        found = run.timeline("run", 0, [MEAN], first=first, last=last)
        inside = np.arange(max(first or 10, 10), min(19 if last is None else last, 19) + 1)
        assert_array_equal(steps_of(found), inside)
        assert_array_equal(line(found, MEAN), inside)
    for first, last in ((20, None), (None, 9), (15, 14)):
        for names in ([], [MEAN], [MEAN, KL]):
            found = run.timeline("run", 0, names, first=first, last=last)
            lengths = [len(steps_of(found)), *(len(line(found, name)) for name in names)]
            assert (lengths, found.width) == ([0] * (1 + len(names)), 1)
    bring_in(run, "run", 1, np.arange(1, 4), {MEAN: np.array([1.0, 3.0, 2.0])}).result()
    found = run.timeline("run", 1, [MEAN])
    assert (steps_of(found).tolist(), line(found, MEAN).tolist()) == ([1, 2, 3], [1.0, 3.0, 2.0])


def test_a_bucket_says_the_sum_of_what_is_broken_and_the_worst_of_what_is_judged(run: Ledger) -> None:
    numbers = np.arange(0, 4000, 7)
    severity, tokens = numbers % 11 % 4, (1 + numbers % 5).astype(np.float64)
    values = np.where(numbers % 3 == 0, math.nan, numbers).astype(np.float64)
    tokens[numbers % 9 == 0] = 0  # without tokens nothing is broken
    bring_in(run, "run", 0, numbers, {MEAN: values, "tokens": tokens}, severity=severity).result()
    for points, until, widths in ((2000, 3999, {4}), (99, 3999, {44}), (2000, 1999, {1})):
        found = run.timeline("run", 0, [MEAN, "tokens"], points=points, last=until)
        assert found.width in widths
        for at, (first, last) in enumerate(zip(found.first, found.last, strict=True)):
            inside = (numbers >= first) & (numbers <= last)
            broken = np.isnan(values[inside]) & (tokens[inside] > 0)
            assert (found.steps[at], found.broken[at]) == (inside.sum(), broken.sum())
            assert found.severity[at] == severity[inside].max()
            assert (found.low["tokens"][at], found.high["tokens"][at]) == (tokens[inside].min(), tokens[inside].max())


def test_other_attempts_steps_are_in_no_chart_of_one(run: Ledger) -> None:
    wide = np.array([0, 500, 602, 8185, 8186, 8191, 10**6])
    few = np.array([500, 501, 600, 8180, 8184, 8185])
    for attempt, numbers in enumerate((wide, few, wide)):
        bring_in(run, "run", attempt, numbers, {MEAN: np.full(len(numbers), float(attempt))}).result()
    near = run.timeline("run", 1, [MEAN], first=400, last=600)
    assert (near.width, steps_of(near).tolist()) == (1, [500, 501, 600])
    far = run.timeline("run", 1, [MEAN], points=5000)
    assert (far.width, far.first[0], far.last[-1], far.steps.sum()) == (4, 500, 8185, 6)
    assert (far.low[MEAN].min(), far.high[MEAN].max()) == (1.0, 1.0)
    rows = {row.key.step: row.sealed for row in run.steps("run", 1)}
    newest = [
        max(step for step in rows if first <= step <= last) for first, last in zip(far.first, far.last, strict=True)
    ]
    assert far.sealed.tolist() == [rows[step] for step in newest]
    (last,) = run.steps("run", 1, after=8184)
    (before,) = run.steps("run", 1, after=8183, limit=1)
    assert far.sealed[-1] == last.sealed
    assert run.timeline("run", 1, [MEAN], last=8184, points=5000).sealed[-1] == before.sealed != last.sealed


def test_a_step_without_tokens_is_not_broken_and_one_without_logprobs_is(run: Ledger) -> None:
    plain = {"sample": "a", "rollout_logprobs": [-1.0], "train_logprobs": [-1.5]}
    rows = [plain | {"loss_mask": [False]}, plain | {"train_logprobs": [math.nan]}, plain]
    for step, row in enumerate(rows):
        part = StepRecords.of([row])
        post(run, StepKey("run", 0, step), part)
        figures = compare_step(part.columns)
        run.seal(NewStep(StepKey("run", 0, step), {0: part.digest}, 0, figures, samples=1, tokens=1)).result()
    assert run.timeline("run", 0, [MEAN]).broken.tolist() == [0, 1, 0]
    sealed(run, StepKey("run", 0, 4000), StepRecords.of([plain]), worst=1)
    assert run.timeline("run", 0, [MEAN]).broken.tolist() == [1, 0]


def test_steps_that_are_brought_in_have_what_is_given_and_nothing_else(run: Ledger) -> None:
    values = {KL: np.array([0.5, math.nan]), "tokens": np.array([9.0, 0]), "router_flips": np.array([math.nan, 2])}
    bring_in(run, "run", 3, np.array([4, 6]), values, severity=np.array([1, 2])).result()
    first, last = run.steps("run", 3)
    assert (first.key, last.key) == (StepKey("run", 3, 4), StepKey("run", 3, 6))
    assert [(row.severity, row.samples, row.weight_version, row.training) for row in (first, last)] == [
        (1, 0, "", {}),
        (2, 0, "", {}),
    ]
    assert (first.figures.gen_kl_error, first.figures.tokens, first.figures.router_flips) == (0.5, 9, 0)
    assert (first.tokens, last.figures.tokens, last.figures.router_flips) == (9, 0, 2)
    assert math.isnan(last.figures.gen_kl_error)
    assert math.isnan(first.figures.ess)
    step = run.step(first.key)
    assert (list(step.by_kind), step.by_position, step.samples, step.parts, step.flips) == (
        ["overall"],
        {},
        (),
        (),
        None,
    )
    assert attempt_numbers(run, "run") == (3,)


def test_steps_that_are_brought_in_may_be_of_one_kind_or_none_at_all(run: Ledger) -> None:
    bring_in(run, "run", 0, np.arange(3), {KL: np.ones(3)}, kind="image").result()
    assert line(run.timeline("run", 0, [KL], kind="image"), KL).tolist() == [1, 1, 1]
    assert len(steps_of(run.timeline("run", 0, [KL]))) == 0
    bring_in(run, "run", 1, np.arange(0), {}, severity=np.arange(0)).result()
    assert run.steps("run", 1) == []
    ((listed,), _) = run.listed(Wanted())
    assert (listed.need.label, attempt_numbers(run, listed.run.run)) == ("ok", (0, 1))
    assert run.overdue(math.inf, 9) == ["run"], "unless another step comes it is silent from now on"


def test_steps_are_brought_into_one_run_and_one_attempt(ledger: Ledger) -> None:
    for name in "amz":
        ledger.put_run(name, {}).result()
    for name, attempt in (("a", 1), ("z", 1), ("m", 0), ("m", 2)):
        bring_in(ledger, name, attempt, np.arange(2), {KL: np.zeros(2)}, severity=np.array([0, 1])).result()
    bring_in(ledger, "m", 1, np.arange(3), {KL: np.ones(3)}, severity=np.array([0, 0, 3])).result()
    assert [ledger.one_listed(name).need.label for name in "amz"] == ["warn", "pause", "warn"]
    assert [len(ledger.steps(*of)) for of in (("a", 1), ("m", 0), ("m", 1), ("m", 2), ("z", 1))] == [2, 2, 3, 2, 2]
    with pytest.raises(ConflictError, match="run m has an attempt 1; take another number"):
        bring_in(ledger, "m", 1, np.arange(3), {}).result()


@pytest.mark.parametrize(
    "given",
    [
        {"values": {KL: np.zeros(2)}},
        {"values": {"tokens": np.zeros(2)}},
        {"values": {}, "severity": np.zeros(4, np.int64)},
    ],
    ids=["a figure", "tokens", "severity"],
)
def test_columns_of_another_length_are_not_brought_in(run: Ledger, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="zip"):
        bring_in(run, "run", 0, np.arange(3), **given).result()
    assert run.attempts("run") == []


def test_a_step_widens_its_buckets_at_either_end_whatever_came_first(run: Ledger) -> None:
    """Step by step: a figure that is no number first, last, or in between changes no extreme."""
    keys = [StepKey("run", 0, step) for step in (2, 0, 3, 1)]
    for key in keys:
        sealed(run, key, records(seed=key.step, rows=2), severity=(0, 3, -1, 2)[key.step])
    sealed(run, StepKey("run", 0, 4000), records(seed=9, rows=2), severity=-1)
    rows = {row.key.step: row for row in run.steps("run", 0)}
    found = run.timeline("run", 0, [KL, "tokens"], last=4000)
    assert (found.width, found.steps.tolist(), found.severity.tolist()) == (4, [4, 1], [3, -1])
    four = [rows[step].figures.gen_kl_error for step in range(4)]
    assert (found.low[KL][0], found.high[KL][0]) == (min(four), max(four))
    assert found.low[KL][1] == found.high[KL][1] == rows[4000].figures.gen_kl_error
    assert found.sealed.tolist() == [rows[3].sealed, rows[4000].sealed]
    assert found.broken.tolist() == [0, 0]
