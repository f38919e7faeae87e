"""Charts at every scale show every extreme, from few rows; kept up step by step as from all steps at once."""

import math
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from omni_rl.consistency.comparison import Comparison, compare
from omni_rl.errors import ConfigError, ConflictError, NotFoundError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.tables import timeline as buckets
from omni_rl.ledger.types import StepKey, Timeline
from omni_rl_bench.history import bring_in, rebuild

from .steps import judged, line, post, records, steps_of

MEAN, KL = "logprob_abs_diff_mean", "gen_kl_error"


@pytest.fixture
def run(ledger: Ledger) -> Ledger:
    ledger.put_run("run", {}).result()
    return ledger


def seal_value(ledger: Ledger, step: int, value: float, severity: int = 0) -> None:
    """A step whose mean is `value`."""
    key, part = StepKey("run", 0, step), records(seed=step, rows=1)
    post(ledger, key, part)
    made = judged(key, part, severity=severity)
    metrics = replace(made.comparison.overall.metrics, logprob_abs_diff_mean=value)
    overall = Comparison(metrics, ())
    ledger.seal(replace(made, comparison=replace(made.comparison, overall=overall))).result()


def spiky(count: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    values = rng.random(count)
    values[rng.integers(0, count, 20)] = 100 + rng.random(20)
    values[rng.integers(0, count, 20)] = -100 - rng.random(20)
    return values


def check(found: Timeline, steps: NDArray[np.int64], values: NDArray[np.float64], points: int) -> None:
    """Every bucket against the steps it covers."""
    assert len(found.first) <= points
    assert found.steps.sum() == len(steps)
    assert np.all(found.first[1:] > found.last[:-1])
    for number, (first, last) in enumerate(zip(found.first, found.last, strict=True)):
        inside = values[(steps >= first) & (steps <= last)]
        assert found.steps[number] == len(inside)
        assert found.low[MEAN][number] == inside.min()
        assert found.high[MEAN][number] == inside.max()


@pytest.mark.parametrize(("count", "width"), [(50, 1), (2000, 1), (2100, 4), (20_000, 16)])
def test_no_extreme_is_lost_at_any_scale(run: Ledger, count: int, width: int) -> None:
    steps, values = np.arange(count), spiky(count)
    bring_in(run, "run", 0, steps, {MEAN: values}).result()
    found = run.timeline("run", 0, [MEAN], points=5000)
    assert found.width == width
    check(found, steps, values, 5000)
    few = run.timeline("run", 0, [MEAN], points=64)
    check(few, steps, values, 64)
    assert line(few, MEAN).max() == values.max()
    assert line(few, MEAN).min() == values.min()
    assert len(steps_of(few)) == len(line(few, MEAN))


@pytest.mark.parametrize(("severities", "need"), [([3, 0, 1], "warn"), ([0, 0, 3], "pause")])
def test_a_run_that_is_brought_in_needs_what_its_last_step_says(run: Ledger, severities: list[int], need: str) -> None:
    steps = np.arange(len(severities))
    bring_in(run, "run", 0, steps, {MEAN: spiky(len(steps))}, severity=np.array(severities)).result()
    assert run.one_listed("run").need.label == need


@pytest.mark.parametrize("points", [5000, 64])
def test_a_bucket_says_when_its_last_step_was_sealed(run: Ledger, points: int) -> None:
    steps = np.arange(0, 9000, 2)
    bring_in(run, "run", 0, steps, {MEAN: spiky(len(steps))}).result()
    sealed = {row.key.step: row.sealed for row in run.steps("run", 0, limit=len(steps))}
    found = run.timeline("run", 0, [MEAN], points=points)
    for first, last, at in zip(found.first.tolist(), found.last.tolist(), found.sealed.tolist(), strict=True):
        assert at == sealed[max(step for step in range(first, last + 1) if step in sealed)]


def test_some_steps_are_spread_over_all_of_them(run: Ledger) -> None:
    steps = np.concatenate([np.arange(0, 600, 3), [5000]])
    bring_in(run, "run", 0, steps, {MEAN: spiky(len(steps))}).result()

    def spread(**asked: int) -> list[int]:
        return [row.key.step for row in run.steps_spread("run", 0, **asked)]

    assert spread(points=6000) == steps.tolist()
    assert spread(last=599, points=10) == [*range(0, 600, 60), 597]
    assert spread(after=99, last=200, points=4) == [102, 129, 153, 177, 198]
    assert spread(points=10) == [0, 501, 5000]
    assert spread(after=5000) == []


def test_a_range_is_what_was_asked_for(run: Ledger) -> None:
    """Buckets at its ends cover steps beyond it, and say what they cover as far as was asked."""
    steps, values = np.arange(0, 30_000, 3), spiky(10_000)
    bring_in(run, "run", 0, steps, {MEAN: values}).result()
    near = run.timeline("run", 0, [MEAN], first=299, last=1500)
    assert near.width == 1
    inside = (steps >= 299) & (steps <= 1500)
    assert_array_equal(steps_of(near), steps[inside])
    assert_array_equal(line(near, MEAN), values[inside])
    far = run.timeline("run", 0, [MEAN], first=3000, last=20_000, points=500)
    assert far.width > 1
    assert (far.first[0], far.last[-1]) == (3000, 19_998)
    assert far.high[MEAN].max() >= values[(steps >= 3000) & (steps <= 20_000)].max()


def test_steps_one_by_one_make_the_same_buckets_as_all_at_once(run: Ledger) -> None:
    rng = np.random.default_rng(3)
    for step in rng.permutation(40)[:30].tolist():
        seal_value(run, step, math.nan if step % 11 == 0 else rng.normal(), severity=int(step == 9) * 3)
    rows = sa.select(buckets).order_by(*buckets.primary_key)
    with run.database.read() as connection:
        kept = connection.execute(rows).all()
    with run.database.write() as connection:
        rebuild(connection, kept[0].attempt_id)
    with run.database.read() as connection:
        assert_array_equal([tuple(row)[2:] for row in connection.execute(rows)], [tuple(row)[2:] for row in kept])


def test_a_figure_that_is_no_number_hides_no_other_and_is_counted(run: Ledger) -> None:
    values = np.arange(3000, dtype=np.float64)
    values[[1700, 1701]] = math.nan
    values[800] = math.inf
    bring_in(run, "run", 0, np.arange(3000), {MEAN: values, "tokens": np.full(3000, 9.0)}).result()
    found = run.timeline("run", 0, [MEAN, KL])
    at = int(np.flatnonzero((found.first <= 1700) & (found.last >= 1700))[0])
    assert found.broken[at] == 2
    assert found.broken.sum() == 2
    assert found.low[MEAN][at] == 1702
    assert found.high[MEAN].max() == math.inf
    assert np.isnan(found.high[KL]).all()
    near = run.timeline("run", 0, [MEAN], first=1699, last=1702)
    assert_array_equal(line(near, MEAN), [1699, math.nan, math.nan, 1702])
    assert near.broken.tolist() == [0, 1, 1, 0]


def test_the_worst_severity_of_a_bucket_is_kept(run: Ledger) -> None:
    severity = np.zeros(5000, np.int64)
    severity[4321] = 3
    bring_in(run, "run", 0, np.arange(5000), {MEAN: np.zeros(5000)}, severity=severity).result()
    found = run.timeline("run", 0, [MEAN], points=100)
    at = np.flatnonzero(found.severity)
    assert [(found.first[n] <= 4321 <= found.last[n], found.severity[n]) for n in at] == [(True, 3)]


def test_kinds_have_lines_of_their_own(run: Ledger) -> None:
    part = records(rows=2)
    for step in range(3):
        key = StepKey("run", 0, step)
        post(run, key, part)
        run.seal(judged(key, part)).result()
    expected = {kind: compare([part.columns.record(n)]).metrics for n, kind in enumerate(("text", "image"))}
    for kind, metrics in expected.items():
        assert_array_equal(line(run.timeline("run", 0, [KL], kind=kind), KL), [metrics.gen_kl_error] * 3)
    assert len(steps_of(run.timeline("run", 0, [KL], kind="audio"))) == 0


def test_what_is_not_there(run: Ledger) -> None:
    with pytest.raises(NotFoundError, match="run run has no attempt 0"):
        run.timeline("run", 0, [KL])
    bring_in(run, "run", 0, np.arange(3), {KL: np.zeros(3)}).result()
    with pytest.raises(ConfigError, match="no figure beauty"):
        run.timeline("run", 0, ["beauty"])
    with pytest.raises(ConflictError, match="run run has an attempt 0"):
        bring_in(run, "run", 0, np.arange(3), {}).result()
    with pytest.raises(NotFoundError, match="no run other"):
        bring_in(run, "other", 0, np.arange(3), {}).result()
    assert len(steps_of(run.timeline("run", 0, [KL], first=10))) == 0
