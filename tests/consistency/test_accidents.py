"""What one token does to a mean over few, and what it does not excuse."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_rl.consistency.accidents import SECOND, one_accident
from omni_rl.consistency.comparison import compare
from omni_rl.consistency.figures import k3
from omni_rl.consistency.limits import Judgement, Severity, judge, limits_for
from omni_rl.consistency.records import SampleRecord


def judged(*d: float, dtype: str = "bfloat16") -> Judgement:
    """Of tokens that are that far apart."""
    rollout = np.full(len(d), -3.0)
    metrics = compare([SampleRecord("answer", "text", 4, rollout, rollout + np.array(d))]).figures
    return judge({"text": metrics}, limits_for(dtype))


def noise(tokens: int) -> list[float]:
    """As bfloat16 has it: 0.016 in the mean."""
    return [float(d) for d in np.random.default_rng(0).normal(0, 0.02, tokens)]


def test_one_token_of_few_is_no_alarm_in_bfloat16() -> None:
    found = judged(1.2, *noise(31))

    assert found.severity is Severity.OK
    assert found.reason == "text: token_mult_prob_error 1.085 is over 1.05 for one token of 32"


def test_a_tie_and_the_token_after_it_are_no_alarm_among_few() -> None:
    assert judged(-1.34, -1.04, *noise(28)).severity is Severity.OK
    assert judged(-2.3, *noise(15)).severity is Severity.OK
    assert judged(-1.3, -1.3, -1.3, *noise(28)).severity > Severity.OK


def test_the_same_mean_of_many_tokens_is_one() -> None:
    assert judged(*[1.2, *noise(31)] * 100).severity is Severity.MASK


def test_tokens_that_are_all_off_are_an_alarm_however_few() -> None:
    assert judged(*[0.08] * 8).severity is Severity.WARN
    assert judged(*[1.2] * 2).severity is Severity.PAUSE


def test_a_token_that_no_tie_explains_is_an_alarm() -> None:
    assert judged(12.0, *noise(159)).severity is Severity.PAUSE
    assert judged(12.0).severity is Severity.PAUSE


@pytest.mark.parametrize("d", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_over_every_limit(d: float) -> None:
    assert judged(d, *noise(31)).severity is Severity.PAUSE


def test_a_token_that_is_off_is_one_in_float32() -> None:
    assert judged(2e-3, *[0.0] * 500, dtype="float32").severity is Severity.MASK


def test_nothing_is_spared_where_the_largest_is_not_known() -> None:
    assert one_accident("gen_kl_error", {"tokens": 32, "gen_kl_error": 0.02}) == 0


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=60))
def test_a_mean_counts_without_its_worst_token_or_two_and_no_less(d: list[float]) -> None:
    rollout = np.full(len(d), -3.0)
    figures = compare([SampleRecord("answer", "text", 4, rollout, rollout + np.array(d))]).figures
    apart = (rollout + np.array(d)) - rollout
    terms = {
        "logprob_abs_diff_mean": (np.abs(apart), 0.0),
        "token_mult_prob_error": (np.expm1(np.abs(apart)), 1.0),
        "gen_kl_error": (k3(apart), 0.0),
    }
    for metric, (values, perfect) in terms.items():
        rising = np.sort(values)
        counted = figures[metric] - perfect - one_accident(metric, figures)
        assert counted <= rising[:-1].sum() / len(d) + 1e-9
        if metric != "gen_kl_error":  # which is less of a negative d than is taken off
            assert counted >= rising[: -2 if len(d) >= SECOND else -1].sum() / len(d) - 1e-9
