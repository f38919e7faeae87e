"""Biases too small for one step to show, differences that grow, and how seldom chance is taken for either."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from omni_rl.consistency.posted.history import History, two_sided
from omni_rl.consistency.posted.support import UnitMean

TOKENS, ERROR = 4096, 1e-3


def _steps(excess: float, count: int, seed: int) -> list[UnitMean]:
    drawn = excess + ERROR * np.random.default_rng(seed).standard_normal(count)
    return [UnitMean(one, ERROR, 64, 0.0) for one in drawn.tolist()]


def _told(means: list[UnitMean]) -> int | None:
    """The step after which a bias is told; None if none is."""
    history = History()
    for number, mean in enumerate(means):
        history = history.after((0.01, 1e-4), mean, TOKENS, clean=True)
        if history.staying(0.0) is not None:
            return number
    return None


def test_a_bias_that_no_step_shows_is_found_over_steps() -> None:
    small = ERROR  # one standard error of a step
    assert not any(History(looks=k).significant(mean.t, 64, 1) for k, mean in enumerate(_steps(small, 50, 3)))
    found = [_told(_steps(small, 200, seed)) for seed in range(20)]
    assert all(step is not None and step < 60 for step in found)


def test_chance_is_not_taken_for_a_bias_however_long_a_run_is() -> None:
    runs = [_told(_steps(0.0, 2000, seed)) for seed in range(200)]
    assert [step for step in runs if step is not None] == []
    looks = [History(looks=k).significant(mean.t, 64, 1) for k, mean in enumerate(_steps(0.0, 20_000, 7))]
    assert not any(looks)


def test_a_bias_that_was_mended_is_told_no_more() -> None:
    history = History()
    means = [*_steps(ERROR, 60, 1), *_steps(0.0, 400, 2)]
    told = []
    for mean in means:
        history = history.after((0.01, 1e-4), mean, TOKENS, clean=True)
        told.append(history.staying(0.0) is not None)
    assert told[59]
    assert not told[-1]


def test_a_difference_that_grows_with_every_step_is_found_and_one_that_wavers_is_not() -> None:
    history = History()
    for size in (0.012, 0.02, 0.04, 0.07):
        assert history.grows(size, 1e-3) is None
        history = history.after((size, 1e-3), None, TOKENS, clean=False)
    assert history.grows(0.1, 1e-3) == (0.012, 4)
    assert history.grows(0.1, 0.05) is None, "within its errors"
    assert replace(history, sizes=((0.012, 1e-3), (0.07, 1e-3), (0.02, 1e-3), (0.05, 1e-3))).grows(0.1, 1e-3) is None


def test_noise_is_the_runs_own_once_enough_clean_steps_showed_it() -> None:
    history = History()
    assert history.noise(0.05) == 0.05
    for _ in range(8):
        history = history.after((0.01, 1e-4), None, TOKENS, clean=True)
    history = history.after((3.0, 1e-4), None, TOKENS, clean=False)
    assert history.noise(0.05) == pytest.approx(0.02)


def test_few_answers_need_more_to_be_sure() -> None:
    for freedom in (7, 31, 63, 4999):
        for t in (2.0, 5.0, 8.0):
            assert two_sided(t, freedom) == pytest.approx(2 * student.sf(t, freedom), rel=0.1)
    assert two_sided(5.0, 0) == 1.0
    assert two_sided(math.inf, 9) == two_sided(math.nan, 9) == 1.0
    assert two_sided(-3.0, 1) == two_sided(3.0, 1) == pytest.approx(2 * student.sf(3.0, 1), rel=0.1)


def test_a_step_adds_to_the_history_what_it_shows() -> None:
    mean = UnitMean(0.25, 0.125, 8, 0.0)
    first = History().after((0.5, 0.1), mean, 100, clean=True)
    assert first == History(1, 25.0, 12.5**2, 100, 16 * 12.5**2, ((0.5, 0.1),), 0.5, 1)
    second = first.after((1.0, 0.2), replace(mean, excess=-0.5, error=0.25), 20, clean=True)
    assert second == History(2, 15.0, 12.5**2 + 25, 120, 16 * 12.5**2, ((0.5, 0.1), (1.0, 0.2)), 0.75, 2)
    sizes = (*second.sizes, (3.0, 0.3))
    assert second.after((3.0, 0.3), mean, 100, clean=False) == replace(second, looks=3, sizes=sizes)
    assert second.after((3.0, 0.3), mean, 0, clean=True) == replace(second, sizes=sizes)
    calm = replace(second, looks=3, sizes=sizes, clean=1.5, clean_steps=3)
    assert second.after((3.0, 0.3), replace(mean, answers=7), 100, clean=True) == calm
    assert second.after((3.0, 0.3), None, 1, clean=True) == calm


def test_the_sizes_of_the_latest_steps_are_kept() -> None:
    history = History()
    for number in range(40):
        history = history.after((float(number), 0.1), None, 1, clean=True)
    assert [size for size, _ in history.sizes] == list(range(8, 40))


@pytest.mark.parametrize(("steps", "noise"), [(7, 0.05), (8, 0.02)])
def test_eight_clean_steps_say_what_noise_is(steps: int, noise: float) -> None:
    history = History(clean=0.01, clean_steps=steps)
    assert history.noise(0.05) == noise
    assert history.noise(0.015) == 0.015


@pytest.mark.parametrize("looks", [0, 1, 9])
@pytest.mark.parametrize("tests", [1, 20])
def test_what_is_significant_gets_rarer_with_every_step_and_test(looks: int, tests: int) -> None:
    """The steps share half of one false alarm in a thousand runs: 6 / pi^2 of that is the first one's."""
    share = 5e-4 * 6 / math.pi**2 / (looks + 1) ** 2
    history = History(looks=looks)
    assert history.share == pytest.approx(share)
    at = student.isf(share / tests / 2, 4999)
    assert not history.significant(0.99 * at, 5000, tests)
    assert history.significant(1.01 * at, 5000, tests)
    assert history.significant(-1.01 * at, 5000, tests)
    assert history.significant(1e9, 8, tests)
    assert not history.significant(1e9, 7, tests)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_a_bias_stays_where_its_sum_is_over_a_bound_that_holds_at_every_step(sign: int, tolerance: float) -> None:
    """The bound is that of Howard et al. (2021), eq. 14, with a rate of 5e-4."""
    variance, scale, tokens = 40.0, 90.0, 1000
    bound = math.sqrt(130.0 * math.log(130.0 / 90.0 / 5e-4**2)) + tolerance * tokens
    found = [History(1, sign * far * bound, variance, tokens, scale).staying(tolerance) for far in (0.999, 1.001)]
    assert found == [None, pytest.approx(sign * 1.001 * bound / tokens)]
    assert History().staying(0.0) is None


@pytest.mark.parametrize(
    ("earlier", "latest", "error", "found"),
    [
        ([0.125, 0.15, 0.2, 0.25], 0.375, 0.0, (0.125, 4)),
        ([0.125, 0.15, 0.2, 0.25], 0.374, 0.0, None),  # it has to be three times as much
        ([0.125, 0.15, 0.2], 0.375, 0.0, None),  # in five steps
        ([0.9, 0.8, 0.125, 0.15, 0.2, 0.25], 0.375, 0.0, (0.125, 4)),
        ([0.125, 0.15, 0.2, 0.4], 0.375, 0.0, None),  # it was more before
        ([0.125, 0.15, 0.2, 0.25, 0.3, 0.4], 0.375, 0.0, None),
        ([0.125, 0.2, 0.15, 0.25, 0.3], 0.375, 0.0, (0.125, 5)),
        ([0.125, 0.2, 0.15, 0.3, 0.25], 0.375, 0.0, None),  # it wavers
        ([0.125, 0.15, 0.2, 0.25], 0.375, 0.0288, (0.125, 4)),  # 6 errors of 0.0288 and 0.03 together
        ([0.125, 0.15, 0.2, 0.25], 0.375, 0.0290, None),
        ([], 0.375, 0.0, None),
    ],
)
def test_a_difference_grows_if_it_is_more_at_nearly_every_step_than_chance_makes(
    earlier: Sequence[float], latest: float, error: float, found: tuple[float, int] | None
) -> None:
    sizes = tuple((size, 0.03) for size in earlier)
    assert History(sizes=sizes).grows(latest, error) == found
