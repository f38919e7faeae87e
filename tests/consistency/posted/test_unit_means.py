"""The unit mean and the size of each part of a step, by numbers worked out by hand; what they say of lost support."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.posted.places import Places
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.consistency.posted.support import UnitMean, support

FIRST, LAST = "the first tokens", "the last tokens"


def step(*answers: Sequence[float], kinds: Sequence[str] = ()) -> PostedStep:
    """Answers of these d, all of whose tokens count."""
    d = np.array([value for answer in answers for value in answer])
    return PostedStep(
        [f"a{n}" for n in range(len(answers))],
        kinds or ["text"] * len(answers),
        np.cumsum([0, *map(len, answers)]),
        np.full(len(d), -16.0),
        d - 16.0,
        np.ones(len(d), np.bool_),
        np.ones(len(answers)),
    )


@pytest.mark.parametrize(
    ("lengths", "names"),
    [
        ([1, 1], []),
        ([1, 2], [FIRST, "tokens 1 to 7"]),
        ([8, 8], [FIRST, "tokens 1 to 7"]),
        ([9, 2], [FIRST, "tokens 1 to 7", "tokens 8 to 15"]),
        ([17, 2], [FIRST, "tokens 1 to 7", "tokens 8 to 15", "tokens 16 to 31"]),
    ],
)
def test_positions_are_the_first_token_then_twice_as_many_each(lengths: list[int], names: list[str]) -> None:
    places = Places.of(step(*([0.0] * length for length in lengths)))
    filled = {name for name, mean in places.unit_means.items() if mean.answers and name != "overall"}
    assert filled == set(names)
    assert set(places.positions) == {FIRST, *names} | ({LAST} if max(lengths) > 1 else set())


def test_kinds_have_a_unit_mean_where_there_are_several() -> None:
    low, high = [math.log(0.5)] * 4, [math.log(1.5)] * 4
    found = Places.of(step(low, high, low, kinds=["text", "image", "text"])).unit_means
    assert [found[name].excess for name in ("text", "image", "overall")] == pytest.approx([-0.5, 0.5, -1 / 6])
    assert [found[name].answers for name in ("text", "image", "overall")] == [2, 1, 3]
    assert "text" not in Places.of(step(low, high)).unit_means


def test_the_error_of_a_mean_is_the_scatter_of_its_answers() -> None:
    """The answers have 2 and 6 tokens: the mean is (2 + 3) / 8, and their sums are 0.75 over and 0.75 below theirs."""
    places = Places.of(step([1.0, 1.0], [0.5] * 6))
    assert places.size.mean == pytest.approx(0.625)
    assert places.size.error == pytest.approx(math.sqrt(2 / 1 * (0.75**2 + 0.75**2)) / 8)
    assert places.size.answers == 2
    three = Places.of(step([1.0], [0.5], [0.0])).size
    assert three.mean == 0.5
    assert three.error == pytest.approx(math.sqrt(3 / 2 * 2 * 0.5**2) / 3)
    last = places.positions[LAST]
    assert last.mean == pytest.approx(0.75)
    assert last.answers == 2
    assert last.error == pytest.approx(math.sqrt(2 * 2 * 0.25**2) / 2)


def test_of_one_answer_nobody_knows_how_sure_its_mean_is() -> None:
    places = Places.of(step([0.5] * 4, []))
    assert (places.size.mean, places.size.error, places.size.answers) == (0.5, math.inf, 1)
    mean = places.unit_means["overall"]
    assert (mean.error, mean.t, mean.answers) == (0.0, 0.0, 1)
    assert mean.excess == pytest.approx(math.exp(0.5) - 1)
    empty = Places.of(step([], []))
    assert (empty.size.mean, empty.size.error, empty.size.answers) == (0.0, math.inf, 0)
    assert empty.unit_means["overall"] == UnitMean(0.0, 0.0, 0, 0.0)


def test_a_token_counts_as_twenty_at_most_and_what_that_took_is_known() -> None:
    mean = Places.of(step([math.log(40.0), 0.0], [math.log(19.0), 0.0, 0.0])).unit_means["overall"]
    assert mean.excess == pytest.approx((19 + 18) / 5)
    assert mean.capped == pytest.approx(20 / 5)


def test_what_each_kind_and_place_holds_is_known_token_by_token() -> None:
    one = step([0.0] * 2, [0.0], [0.0] * 10, kinds=["text", "image", "image"])
    places = Places.of(one)
    assert places.inside("overall").all()
    assert np.flatnonzero(places.inside("image")).tolist() == list(range(2, 13))
    assert np.flatnonzero(places.inside(FIRST)).tolist() == [0, 2, 3]
    assert np.flatnonzero(places.inside("tokens 1 to 7")).tolist() == [1, *range(4, 11)]
    assert np.flatnonzero(places.inside("tokens 8 to 15")).tolist() == [11, 12]
    assert np.flatnonzero(places.inside(LAST)).tolist() == [1, 12]
    masked = replace(one, counted=np.arange(13) != 12)
    assert Places.of(masked).positions[LAST].answers == 1


@pytest.mark.parametrize(
    ("excess", "capped", "beyond"),
    [
        (0.01, 0.0, False),
        (0.0101, 0.0, True),
        (0.0101, 0.5, True),
        (-0.01, 0.0, False),
        (-0.0101, 0.0, True),
        (-0.0101, 0.001, False),
        (-0.02, 0.009, True),
    ],
)
def test_a_fall_that_the_cap_explains_is_none(excess: float, capped: float, beyond: bool) -> None:
    assert UnitMean(excess, 0.001, 9, capped).is_beyond(0.01) is beyond


def test_an_excess_is_counted_in_standard_errors() -> None:
    assert UnitMean(-0.02, 0.005, 9, 0.0).t == pytest.approx(-4.0)
    assert UnitMean(-6.0, 2.0, 9, 0.0).t == pytest.approx(-3.0)


NOISE = 0.01


def lost(d: Sequence[float], excess: float = -0.1) -> tuple[str, str]:
    found = support(step(d), UnitMean(excess, 0.01, 64, 0.0), NOISE)
    return found.result, found.sentence


@pytest.mark.parametrize(
    ("d", "explains"),
    [
        ([-0.02, 0.0105] * 50, True),  # (0.02 - 0.0105) / 0.0305 is 0.31
        ([-0.02, 0.011] * 50, False),  # 0.29
        ([-0.5, *[0.02, -0.02] * 50], True),  # one side has more than 0.6 of what is more than twice the noise off
        ([-0.5, 0.13, *[0.02, -0.02] * 50], False),  # 0.59
        ([-0.5, 0.12, *[0.02, -0.02] * 50], True),  # 0.61
    ],
)
def test_lost_support_is_one_sided_in_all_tokens_or_in_those_that_are_off(d: list[float], explains: bool) -> None:
    assert (lost(d)[0] == "explains") is explains


@pytest.mark.parametrize(("excess", "explains"), [(0.0, False), (-1e-6, True)])
def test_only_a_mean_below_one_is_lost_support(excess: float, explains: bool) -> None:
    assert (lost([-0.1] * 9, excess)[0] == "explains") is explains


@pytest.mark.parametrize(
    ("below", "above", "explains"),
    [
        (399, 2, False),
        (400, 2, True),  # 2 of 400 are no more than one in 200
        (599, 3, False),
        (10, 1, True),  # one is an accident
    ],
)
def test_a_few_tokens_of_very_many_do_not_speak_against_it(below: int, above: int, explains: bool) -> None:
    assert (lost([-0.3] * below + [0.3] * above)[0] == "explains") is explains


@pytest.mark.parametrize(("above", "explains"), [(0.25, True), (0.35, False)])
def test_tokens_that_weigh_little_do_not_speak_against_it(above: float, explains: bool) -> None:
    """Two tokens stand against 0.6 nats in a thousand of the 300 that all tokens below zero have."""
    assert (lost([-4.0] * 75 + [above] * 2 + [-0.01] * 10)[0] == "explains") is explains


@pytest.mark.parametrize(
    ("off", "depth", "few"), [(40, 0.5, True), (41, 0.5, False), (40, 0.15, False), (1, 0.21, True)]
)
def test_a_loss_that_few_tokens_carry_is_said_to_be_that_of_few_positions(off: int, depth: float, few: bool) -> None:
    result, said = lost([-depth] * off + [0.0] * (100 - off))
    assert result == "explains"
    assert ("at few" in said or f"at {off}.0% of the tokens" in said) is few
