"""Single answers that are off: bets worked out one token at a time, and which answers are outliers at the edges."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from omni_rl.consistency.posted.outliers import biased_answers, distant_answers, is_biased, log_fortune
from omni_rl.consistency.posted.places import Places
from omni_rl.consistency.posted.step import Array, PostedStep


def step(*answers: Sequence[float] | Array) -> PostedStep:
    """Answers of these d, all of whose tokens count."""
    d = np.concatenate([np.asarray(answer, np.float64) for answer in answers])
    return PostedStep(
        [f"a{n}" for n in range(len(answers))],
        ["text"] * len(answers),
        np.cumsum([0, *map(len, answers)]),
        np.full(len(d), -16.0),
        d - 16.0,
        np.ones(len(d), np.bool_),
        np.ones(len(answers)),
    )


def fortune(ratios: Sequence[float], tolerance: float, capped: float) -> float:
    """What a sixth of 1 on each of six bets becomes; a fall that the cap leaves undecided is not bet on."""
    whole = 0.0
    for stake in (0.02, 0.1, 0.3):
        rise = fall = 1.0
        for ratio in ratios:
            rise *= 1 + stake * (ratio - 1 - tolerance)
            fall *= 1 + stake * (1 - min(ratio, 4) - tolerance - capped)
        can_lose_all = 0.3 * (3 + tolerance + capped) >= 1
        whole += rise + (0.0 if can_lose_all else fall)
    return whole / 6


@pytest.mark.parametrize("ratios", [(), (1.0,), (0.5, 0.25, 2.0, 0.1), (6.0, 1.5, 9.0), (0.9,) * 300])
@pytest.mark.parametrize(("tolerance", "capped"), [(0.0, 0.0), (0.01, 0.02), (0.03, 0.3), (0.03, 0.31), (0.0, 0.9)])
def test_a_fortune_is_what_the_bets_make_of_one(ratios: Sequence[float], tolerance: float, capped: float) -> None:
    found = log_fortune(np.log(np.array(ratios)), tolerance, capped)
    assert found == pytest.approx(math.log(fortune(ratios, tolerance, capped)), abs=1e-9)


@pytest.mark.parametrize(("share", "biased"), [(1 - 1e-6, False), (1 + 1e-6, True)])
def test_a_small_step_is_biased_where_its_fortune_is_more_than_chance_makes(share: float, biased: bool) -> None:
    chance = 1 / fortune([0.7] * 40, 0.01, 0.0)
    assert is_biased(step(np.full(40, math.log(0.7))), 0.01, share * chance) is biased


@pytest.mark.parametrize(("tokens", "biased"), [(0, False), (1, True), (16_384, True), (16_385, False)])
def test_of_many_tokens_the_scatter_tells_and_of_none_nothing_does(tokens: int, biased: bool) -> None:
    assert is_biased(step(np.full(tokens, 5.0)), 1e-3, 0.2) is biased


def test_tokens_that_count_less_than_they_are_do_not_make_a_step_biased() -> None:
    """The mean of exp(d) is 1 of these tokens, and 0.96 where each counts as 4 at most."""
    ratios = np.tile([8.0, *[92 / 99] * 99], 100)
    assert ratios.mean() == pytest.approx(1)
    assert not is_biased(step(np.log(ratios)), 1e-3, 1e-3)
    assert is_biased(step(np.log(np.minimum(ratios, 4.0))), 1e-3, 1e-3)


def test_answers_that_are_off_are_named_furthest_first() -> None:
    answers = [np.zeros(100) for _ in range(40)]
    answers[3] += math.log(0.6)
    answers[7] += math.log(0.2)
    answers[9] += math.log(1.5)
    found = biased_answers(Places.of(step(*answers)), 1e-3, 0.01)
    assert found is not None
    assert found.answers == (7, 9, 3)
    assert found.sentence == (
        "3 of 40 answers by themselves (a7, a9, a3): the trainer gives the 100 tokens of a7 80.00% less probability "
        "than a policy's own samples have"
    )
    answers[7] += math.log(9.0)
    more = biased_answers(Places.of(step(*answers)), 1e-3, 0.01)
    assert more is not None
    assert "(a7, a9, a3): the trainer gives the 100 tokens of a7 80.00% more probability" in more.sentence


def test_an_answer_is_tested_against_the_chance_of_any_of_them() -> None:
    answers = [np.zeros(40)] * 39 + [np.full(40, math.log(0.7))]
    chance = 40 / fortune([0.7] * 40, 0.01, 0.0)
    places = Places.of(step(*answers))
    assert biased_answers(places, 0.01, chance * (1 - 1e-6)) is None
    found = biased_answers(places, 0.01, chance * (1 + 1e-6))
    assert found is not None
    assert found.answers == (39,)


def test_of_many_answers_that_are_off_the_furthest_are_tested() -> None:
    answers = [np.full(400, math.log(0.8 - 0.02 * n)) for n in range(20)] + [np.zeros(9)] * 200
    found = biased_answers(Places.of(step(*answers)), 1e-3, 0.01)
    assert found is not None
    assert found.answers == tuple(range(19, 3, -1))
    assert found.finding(step(*answers)).samples == tuple(f"a{n}" for n in range(19, 11, -1))


def test_a_long_answer_that_is_a_little_off_is_found_among_short_ones_that_are_noisy() -> None:
    noisy = [np.log([0.2, 1.8] * 4)] * 30
    found = biased_answers(Places.of(step(*noisy, np.full(2000, math.log(0.97)))), 1e-3, 0.01)
    assert found is not None
    assert found.answers == (30,)
    assert found.numbers["unit_mean"] == pytest.approx(0.97)


def test_an_answer_that_is_far_off_both_ways_is_found_though_its_mean_is_near_one() -> None:
    """It stands among answers whose mean is further off, and long ones that are further off in sum."""
    biased, long = [np.full(4, 0.05)] * 20, [np.log([0.082, 1.918] * 300)] * 20
    far = np.array([math.log(20.0), *[-6.0] * 19] * 3)
    assert abs(np.expm1(far).sum()) < 0.2
    found = biased_answers(Places.of(step(*biased, *long, far)), 1e-3, 0.5)
    assert found is not None
    assert found.answers == (40,)


def test_a_step_without_tokens_has_no_outliers() -> None:
    empty = Places.of(step([], []))
    assert biased_answers(empty, 1e-3, 0.01) is None
    assert distant_answers(empty, np.full(2, -np.inf), 0.05) is None


LIMIT = 0.5
FINE = [0.0] * 16


@pytest.mark.parametrize(
    ("d", "error", "found"),
    [
        ([1.0] * 8, 2.0, True),
        ([1.0] * 7, 2.0, False),  # of so few tokens one accident makes a mean
        ([0.5] * 16, 2.0, False),  # at the limit
        ([1.0] * 8, 1 + LIMIT, False),
        ([4.0, *[0.625] * 8], 2.0, True),
        ([4.0, *[1.0] * 8, *[0.0] * 7], 2.0, False),  # without its furthest token it is at the limit
        ([-4.0, *[-0.625] * 8], 2.0, True),
    ],
)
def test_an_answer_is_distant_if_it_is_over_the_limit_without_its_furthest_token(
    d: list[float], error: float, found: bool
) -> None:
    errors = np.ones(20)
    errors[4] = error
    places = Places.of(step(*[FINE] * 4, d, *[FINE] * 15))
    assert (distant_answers(places, errors, LIMIT) is not None) is found


@pytest.mark.parametrize(("off", "found"), [(1, True), (2, True), (3, False)])
def test_a_tenth_of_the_answers_at_most_are_outliers(off: int, found: bool) -> None:
    answers = [np.full(8, 1.0 + n) if n < off else FINE for n in range(20)]
    seen = distant_answers(Places.of(step(*answers)), np.full(20, 9.0), LIMIT)
    assert (seen is not None) is found
    if seen is not None:
        assert seen.answers == tuple(range(off))[::-1]
        assert seen.numbers == {"answers": float(off), "abs_diff_mean": float(off), "median": 0.0}
        number, themselves = (1, "itself") if off == 1 else (2, "themselves")
        assert seen.sentence.startswith(f"{number} of 20 answers by {themselves} (a{off - 1}")
