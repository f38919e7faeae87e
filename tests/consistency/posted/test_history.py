"""Biases too small for one step to show, differences that grow, and how seldom chance is taken for either."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from omni_rl.consistency.posted.history import History, two_sided
from omni_rl.consistency.posted.support import UnitMean

TOKENS, ERROR = 4096, 1e-3


def _steps(excess: float, count: int, seed: int) -> list[UnitMean]:
    rng = np.random.default_rng(seed)
    return [UnitMean(excess + ERROR * float(rng.standard_normal()), ERROR, 64, 0.0) for _ in range(count)]


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
