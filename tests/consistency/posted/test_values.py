"""Single values at the edges: what no logprob can be, what stands for one, and how it is told."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.posted.step import Array, PostedStep
from omni_rl.consistency.posted.values import impossible, nonfinite, placeholders
from tests.consistency.posted.by_hand import step


def of_side(side: str, its: Sequence[float] | Array, other: Sequence[float] | Array, answers: int = 1) -> PostedStep:
    return step(its, other, answers) if side == "engine" else step(other, its, answers)


SIDES = ["engine", "trainer"]


@pytest.mark.parametrize("side", SIDES)
def test_values_that_are_no_numbers_are_counted_by_side_and_kind(side: str) -> None:
    its = np.full(12, -1.0)
    its[[3, 9]], its[7] = math.nan, -math.inf
    found = nonfinite(of_side(side, its, np.full(12, -1.0), answers=4))
    assert (found.result, found.cause) == ("explains", Cause.NONFINITE_LOGPROBS)
    assert found.sentence.startswith(
        f"2 of the {side}'s logprobs are NaN, and 1 of the {side}'s logprobs is infinite (first: token 0 of a1), of 12 "
        "tokens that count; "
    )
    assert found.numbers == {f"{side}_nan": 2.0, f"{side}_infinite": 1.0}
    assert found.samples == ("a1", "a2")


def test_values_of_tokens_that_do_not_count_may_be_anything() -> None:
    broken = step([-1.0, math.nan, math.inf], [-1.0, 3.0, 0.0])
    masked = replace(broken, counted=np.array([True, False, False]))
    assert nonfinite(masked).result == impossible(masked).result == placeholders(masked).result == "clear"
    one = replace(step([math.nan, -1.0], [-1.0, -1.0]), counted=np.array([True, False]))
    assert "of 1 token that counts; " in nonfinite(one).sentence


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("value", "result"), [(1e-3, "clear"), (1.01e-3, "explains"), (0.5, "explains")])
def test_a_value_above_zero_is_no_logprob(side: str, value: float, result: str) -> None:
    found = impossible(of_side(side, [-1.0, -3.0, value, -2.0], [-1.0, -3.0, -0.5, -2.0], answers=2))
    assert found.result == result
    if result == "explains":
        assert found.sentence.startswith(
            f"1 of the {side}'s 4 logprobs are above 0, the first {value:.4g} (token 0 of a1): no probability is above"
        )
        assert (found.numbers, found.samples) == ({"tokens": 1.0, "first": value}, ("a1",))


def test_the_first_of_several_values_above_zero_is_told() -> None:
    found = impossible(step([-1.0, 0.5, -1.0, 0.25, 0.75, -1.0], [-1.0] * 6, answers=3))
    assert found.sentence.startswith("3 of the engine's 6 logprobs are above 0, the first 0.5 (token 1 of a0)")
    assert (found.numbers, found.samples) == ({"tokens": 3.0, "first": 0.5}, ("a0", "a1", "a2"))


LOGPROBS = -np.random.default_rng(0).gamma(1.0, 1.5, 64)


@pytest.mark.parametrize("side", SIDES)
def test_values_above_zero_are_told_for_what_they_are(side: str) -> None:
    other = LOGPROBS - 0.01
    negated = impossible(of_side(side, -LOGPROBS, other)).sentence
    assert negated.endswith("; with the other sign they agree: they are negative log likelihoods")
    probabilities = impossible(of_side(side, np.exp(LOGPROBS), other)).sentence
    assert probabilities.endswith("; their logarithms agree: they are probabilities")
    zero = impossible(of_side(side, [0.0, *np.exp(LOGPROBS)], [-690.0, *other])).sentence
    assert zero.endswith("they are probabilities")
    for anything in (np.exp(LOGPROBS[::-1]), np.exp(LOGPROBS) + 0.2, np.exp(LOGPROBS) - 0.2, 3 - LOGPROBS[::-1]):
        assert impossible(of_side(side, anything, other)).sentence.endswith("no probability is above 1")


@pytest.mark.parametrize(("off", "told"), [(0.19, True), (0.21, False)])
def test_what_is_left_of_a_reading_is_a_fifth_at_most(off: float, told: bool) -> None:
    """A fifth is that of twice the value where the sign is another, and of 1.5 nats where 0.5 is a probability of 1 in
    2.7."""
    sign = impossible(step([2.0] * 4, [-2.0 / (1 + off) * (1 - off)] * 4)).sentence
    assert ("negative log likelihoods" in sign) is told
    values, other = [0.5] * 4, (math.log(0.5) - off * 0.5) / (1 - off)
    assert abs(math.log(0.5) - other) == pytest.approx(off * (0.5 - other))
    assert ("they are probabilities" in impossible(step(values, [other] * 4)).sentence) is told


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("tokens", "value", "furthest", "result"),
    [
        (64, -0.5, -0.6, "explains"),
        (63, -0.5, -0.6, "clear"),
        (64, -0.5, -0.54, "clear"),
        (64, 0.0, -0.04, "clear"),
        (64, 0.0, -0.06, "explains"),
    ],
)
def test_one_number_for_every_token_is_no_distributions(
    side: str, tokens: int, value: float, furthest: float, result: str
) -> None:
    other = np.linspace(value, furthest, tokens)
    found = impossible(of_side(side, np.full(tokens, value), other, answers=1))
    assert found.result == result
    if result == "explains":
        assert found.sentence.startswith(f"all {tokens} of the {side}'s logprobs are {value:g}: they were never")
        assert (found.numbers, found.samples) == ({"tokens": 64.0, "value": value}, ("a0",))
    assert impossible(of_side(side, np.full(tokens, value), np.full(tokens, furthest))).result == "clear"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("values", "other", "tokens", "value"),
    [
        ([0.0], [-1.01], 1, 0.0),
        ([0.0], [-0.99], 0, 0.0),  # near enough to a certain token's
        ([0.0, 0.0], [-1.5, -0.06], 2, 0.0),
        ([0.0, 0.0], [-1.5, -0.04], 1, 0.0),
        ([-9.0] * 4, [-1.0, -2.0, -3.0, -4.0], 4, -9.0),
        ([-9.0] * 3, [-1.0, -2.0, -3.0], 0, 0.0),  # it comes again too seldom
        ([-9.0] * 3 + [-8.0], [-1.0, -2.0, -3.0, -4.0], 0, 0.0),
        ([-9.0] * 7 + [-7.0, -6.0, -5.0], [-1.0 - 0.1 * n for n in range(10)], 7, -9.0),
        (
            [-9.0] * 6 + [-7.0, -6.0, -5.0],
            [-1.0 - 0.1 * n for n in range(9)],
            0,
            0.0,
        ),  # 6 of 9 far tokens are less than 0.7
        ([0.0] * 7 + [-7.0, -6.0, -5.0], [-3.0 - 0.1 * n for n in range(10)], 7, 0.0),
        ([0.0] * 6 + [-7.0, -6.0, -5.0], [-3.0 - 0.1 * n for n in range(9)], 0, 0.0),
    ],
)
def test_a_placeholder_is_told_by_how_many_tokens_have_it(
    side: str, values: list[float], other: list[float], tokens: int, value: float
) -> None:
    clean = [-1.0, -2.5, -0.5, -12.0]
    found = placeholders(of_side(side, [*clean, *values], [*clean, *other]))
    assert found.result == ("explains" if tokens else "clear")
    if tokens:
        assert (found.cause, found.numbers["tokens"], found.numbers["value"]) == (Cause.LOSS_MASK, tokens, value)
        rest = [abs(a - b) for a, b in zip(values, other, strict=True) if a != value or abs(a - b) <= 0.05]
        assert found.numbers["left"] == pytest.approx(sum(rest) / (4 + len(rest)))


@pytest.mark.parametrize("side", SIDES)
def test_a_placeholder_is_told_with_its_place(side: str) -> None:
    values, other = np.full(20, -1.0), np.full(20, -1.0)
    values[[6, 11]], other[[6, 11]] = 0.0, -3.0
    found = placeholders(of_side(side, values, other, answers=4))
    their = "trainer" if side == "engine" else "engine"
    assert found.sentence == (
        f"2 tokens of 2 answers count although the {side} has the placeholder 0 for them where the {their} has a "
        "logprob (first: token 1 of a1): nobody sampled them; mask them. Without them the mean abs d is 0"
    )
    assert found.samples == ("a1", "a2")
    assert found.numbers["abs_diff_mean"] == pytest.approx(6 / 20)
    values[11] = other[11]
    one = placeholders(of_side(side, values, other, answers=4)).sentence
    assert one.startswith(f"1 token of 1 answer counts although the {side} has the placeholder 0 for it where")


@pytest.mark.parametrize("below", [-7.0, -3.0])
def test_a_floor_is_no_placeholder(below: float) -> None:
    """Where the other side goes on below it, values were cut off."""
    values, other = [-5.0] * 6 + [-1.0] * 20, [below - 0.1 * n for n in range(6)] + [-1.0] * 20
    assert placeholders(step(values, other)).result == ("clear" if below < -5 else "explains")


def test_of_many_answers_with_a_placeholder_eight_are_named() -> None:
    values = np.full((10, 4), -1.0)
    values[:, 1] = 0.0
    found = placeholders(step(values.ravel(), np.full(40, -3.0) + 2.0 * (values.ravel() < 0), answers=10))
    assert found.samples == tuple(f"a{n}" for n in range(8))


def test_an_answers_only_token_is_its_last() -> None:
    found = placeholders(step([-1.0, 0.0, -1.0, -1.0], [-1.0, -3.0, -1.0, -1.0], answers=4))
    assert "(first: token 0 of a1; each the last of its answer)" in found.sentence
