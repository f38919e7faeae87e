"""Logprobs that were changed one by one, at the edges: a factor, a floor, fewer bits."""

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.posted.copies import clipped, kept_in_fewer_bits, scaled
from omni_rl.consistency.posted.step import Array
from tests.consistency.posted.by_hand import step

SMALL = -np.linspace(0.01, 0.5, 100)


@pytest.mark.parametrize(
    ("by", "result"), [(0.099, "clear"), (0.101, "explains"), (9.9, "explains"), (10.1, "clear"), (-1.0, "clear")]
)
def test_a_factor_is_a_tenth_to_ten(by: float, result: str) -> None:
    assert scaled(step(by * SMALL, SMALL)).result == result


@pytest.mark.parametrize(("waver", "result"), [(0.006, "explains"), (0.012, "clear")])
def test_values_that_hardly_vary_must_fit_better(waver: float, result: str) -> None:
    """The engine's values spread by 0.045 about their median, while the sides are 1.9 apart."""
    train = -np.linspace(1.0, 2.0, 200)
    engine = 0.18 * train - 0.1 + waver * np.where(np.arange(200) % 2, 1.0, -1.0)
    assert scaled(step(engine, train)).result == result


@pytest.mark.parametrize(
    ("base", "off", "named"),
    [(np.log(10), 1.04, True), (np.log(10), 1.06, False), (np.log(2), 0.96, True), (np.log(2), 0.94, False)],
)
@pytest.mark.parametrize("side", ["engine", "trainer"])
def test_a_base_is_named_where_the_factor_is_near_it(base: float, off: float, named: bool, side: str) -> None:
    at = off / base if side == "engine" else off * base
    assert ("logarithms to base" in scaled(step(at * SMALL, SMALL)).sentence) is named


def test_a_constant_is_told_if_it_is_a_fifth_of_the_difference() -> None:
    """Less of it is the noise of the fit."""
    for plus, said in ((0.025, False), (0.07, True)):
        found = scaled(step(0.5 * SMALL + plus, SMALL))
        assert (abs(found.numbers["constant"]) > 0.2 * found.numbers["abs_diff_mean"]) is said
        assert (f" plus {plus:.3g}: undone" in found.sentence) is said


@pytest.mark.parametrize("side", ["engine", "trainer"])
@pytest.mark.parametrize(
    ("tokens", "held", "beside", "result"),
    [
        (64, 4, 0.0, "explains"),
        (63, 4, 0.0, "clear"),
        (64, 3, 0.0, "clear"),
        (100, 10, 0.019, "explains"),  # 1.9 of 11.9 nats are no floor's
        (100, 10, 0.03, "clear"),  # 2.7 of 12.7
    ],
)
def test_a_floor_explains_a_difference_that_is_gone_with_it(
    tokens: int, held: int, beside: float, result: str, side: str
) -> None:
    values = -np.linspace(0.5, 4.0, tokens)
    other = values + beside * (np.arange(tokens) >= held)
    values[:held], other[:held] = -5.0, -6.0
    found = clipped(step(*((values, other) if side == "engine" else (other, values))))
    assert found.result == result
    if result == "explains":
        assert found.numbers["floor"] == -5.0
        assert f"none of the {side}'s logprobs is below -5, which {held} tokens have: " in found.sentence


def grid(tokens: int, bits: int) -> Array:
    """Numbers of so many bits, from -2 to -1; neighbours of theirs are 2 ** (1 - bits) apart."""
    size = 2 ** (bits - 1)
    found: Array = -(size + 1 + np.arange(tokens) * 37 % (size - 1)) / size
    return found


@pytest.mark.parametrize("side", ["engine", "trainer"])
@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 11)])
@pytest.mark.parametrize(
    ("share", "far", "noise", "result"),
    [
        (0.99, 0.0, 1e-7, "explains"),
        (1.02, 0.0, 1e-7, "clear"),  # more than half of a step
        (0.5, 9.5, 1e-5, "explains"),  # less than ten times noise beside the rounding
        (0.5, 10.5, 1e-5, "clear"),
    ],
)
def test_a_dtype_of_few_bits_explains_what_its_rounding_makes(
    dtype: str, bits: int, share: float, far: float, noise: float, result: str, side: str
) -> None:
    """Half of a step is what rounding makes at most; two tokens of a hundred are further off."""
    values, half = grid(100, bits), 2.0**-bits
    other = values + share * half * np.where(np.arange(100) % 2, 1.0, -1.0)
    if far:
        other[:2] = values[:2] + half + far * noise
    found = kept_in_fewer_bits(step(*((values, other) if side == "engine" else (other, values))), noise)
    assert found.result == result
    if result == "explains":
        assert found.cause is Cause.ROUNDING
        assert found.sentence.startswith(
            f"the {side}'s logprobs are kept in {dtype}: all lie on its grid, and 100.0% of"
        )
        assert found.numbers["within"] == 1.0


@pytest.mark.parametrize(
    ("tokens", "zeros", "noise", "result"),
    [
        (64, 9, 1e-6, "explains"),
        (63, 9, 1e-6, "clear"),  # zeros are on every grid
        (64, 0, 2.0**-9, "explains"),
        (64, 0, 2.0**-8, "clear"),  # the dtype's rounding is no more than noise
    ],
)
def test_so_many_numbers_on_a_grid_are_no_accident(tokens: int, zeros: int, noise: float, result: str) -> None:
    values = np.concatenate([grid(tokens, 8), np.zeros(zeros)])
    other = values - 0.9 * 2.0**-8 * (values < 0)
    assert kept_in_fewer_bits(step(values, other), noise).result == result


@pytest.mark.parametrize(("far", "by", "result"), [(1, 0.25, "explains"), (1, 0.35, "clear"), (2, 0.01, "clear")])
def test_a_token_that_is_off_by_more_must_weigh_little(far: int, by: float, result: str) -> None:
    """One of 300 tokens may be off; all of them together are 1.2 nats apart."""
    values = grid(300, 8)
    other = values + 2.0**-8 * np.where(np.arange(300) % 2, 1.0, -1.0)
    other[:far] = values[:far] - by
    found = kept_in_fewer_bits(step(values, other), 1e-6)
    assert found.result == result
    if result == "explains":
        assert "99.7% of the differences are within its rounding" in found.sentence


def test_two_sides_that_are_kept_in_few_bits_may_be_two_roundings_apart() -> None:
    values = grid(100, 8)
    other = values + 2.0**-7
    found = kept_in_fewer_bits(step(values, other), 1e-6)
    assert found.sentence.startswith("the engine's and the trainer's logprobs are kept in bfloat16: ")
    assert kept_in_fewer_bits(step(values, other + 2.0**-7), 1e-6).result == "clear"
