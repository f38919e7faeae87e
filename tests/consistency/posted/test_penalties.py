"""How many tokens that were there before it takes to call a difference a penalty, and how far these must lean."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import hypergeom

from omni_rl.consistency.evidence import Finding
from omni_rl.consistency.posted.step import Array, Index, PostedStep
from omni_rl.consistency.posted.transforms import penalty, temperature


def step(d: Array, ids: Index, prompt: Index | None = None) -> PostedStep:
    """One answer of these d, whose tokens are as likely at any place."""
    tokens = len(d)
    train = -np.random.default_rng(0).gamma(2.0, 1.0, tokens) - 1
    return PostedStep(
        ["a0"],
        ["text"],
        np.array([0, tokens]),
        train - d,
        train,
        np.ones(tokens, np.bool_),
        np.ones(1),
        ids=ids,
        prompts=None if prompt is None else [prompt],
    )


def new(tokens: int) -> Array:
    """As often above zero as below."""
    found: Array = 0.02 * np.where(np.arange(tokens) % 2, 1.0, -1.0)
    return found


def again(number: int, above: int, by: float = 0.3) -> Finding:
    """An answer of 544 ids, of which a number comes a second time: then `above` of them are less likely at the engine,
    the others more."""
    d = np.r_[new(544), np.where(np.arange(number) < above, by, -0.02)]
    return penalty(step(d, np.r_[np.arange(544), np.arange(number)]))


@pytest.mark.parametrize(
    ("number", "above", "result"),
    [
        (32, 32, "explains"),
        (31, 31, "clear"),  # of fewer ids that stood there before and were new, it takes more tokens
        (32, 27, "clear"),  # they do not lean far enough for so few
        (100, 100, "explains"),
    ],
)
def test_few_tokens_that_come_again_tell_a_penalty_by_what_their_ids_were_when_new(
    number: int, above: int, result: str
) -> None:
    """Every second one of the ids was above zero when it was new: of two tokens of one id, both sides of zero, a half
    is what chance makes."""
    found = again(number, above)
    assert found.result == result
    if above == number:
        assert found.numbers["tilt_of_ids"] == pytest.approx(((number + 1) // 2) * 0.5 / (number * 0.5))
    assert found.numbers["d_mean_new"] == pytest.approx(0.0)
    assert found.numbers["d_mean_seen"] == pytest.approx((0.3 * above - 0.02 * (number - above)) / number)


@pytest.mark.parametrize(("lower", "higher", "result"), [(20, 7, "explains"), (21, 8, "clear")])
def test_ids_must_surely_lean_the_same_way_as_all_tokens(lower: int, higher: int, result: str) -> None:
    """Of 64 ids that come again some are less likely at the engine only then, some only when they are new, and the
    others both times: the first are 13 more than the second, which is 2.5 standard errors of 27 of both."""
    number = np.arange(64)
    first = np.where(number < lower, -0.02, 0.02)
    then = np.where((number >= lower) & (number < lower + higher), -0.02, 0.3)
    found = penalty(step(np.r_[first, new(480), then], np.r_[np.arange(544), number]))
    assert found.numbers["tilt_of_ids"] == pytest.approx(13 / 64)
    assert found.numbers["errors"] > 5
    assert found.result == result


def prompted(number: int) -> Finding:
    """An answer of ids that come once, of which a number stands in the prompt."""
    ids = np.arange(600)
    d = np.where(ids < number, 0.3, np.r_[new(600)])
    return penalty(step(d, ids, np.arange(number)))


@pytest.mark.parametrize(("number", "result"), [(50, "clear"), (90, "explains")])
def test_of_ids_that_were_never_new_it_takes_more_tokens(number: int, result: str) -> None:
    found = prompted(number)
    assert found.result == result
    assert (found.numbers["errors"] >= 8) is (result == "explains")
    assert found.numbers["errors"] >= 5
    assert found.numbers["tilt_of_ids"] == 0.0


@pytest.mark.parametrize(("above", "result"), [(0.65, "clear"), (0.75, "explains")])
def test_tokens_that_lean_a_little_are_no_penalty_however_many(above: float, result: str) -> None:
    """The step has 2000 tokens that came before and as many new ones, of the same ids."""
    ids = np.tile(np.arange(2000), 2)
    d = np.r_[new(2000), np.where(np.random.default_rng(1).permutation(2000) < above * 2000, 0.1, -0.02)]
    found = penalty(step(d, ids))
    assert found.result == result
    assert found.numbers["tilt"] == pytest.approx(above - 0.5, abs=0.03)
    assert found.numbers["errors"] > 8


@pytest.mark.parametrize(("when_new", "result"), [(0.06, "clear"), (-0.06, "explains")])
def test_ids_that_are_off_when_they_are_new_too_speak_against_a_penalty(when_new: float, result: str) -> None:
    """The 300 ids that come again are less likely at the engine; all others, that do not, are more likely there."""
    ids, d = np.r_[np.arange(1000), np.arange(300)], np.full(1300, -0.06)
    d[:290], d[1000:] = when_new, 0.055
    assert penalty(step(d, ids)).result == result


def test_a_penalty_that_hardly_moves_tokens_is_told_by_new_ones_that_lean() -> None:
    """What comes again explains a hundredth of the variance, which a few wild tokens make."""
    ids, wild = np.tile(np.arange(1200), 2), np.arange(0, 2400, 20)
    leaning = np.repeat([-0.02, 0.02], 1200)
    even = np.r_[np.where(np.arange(1200) % 4 == 1, 0.06, -0.02), np.full(1200, 0.02)]
    for d, result in ((leaning, "explains"), (even, "clear")):
        d[wild] = 0.5 * np.where(np.arange(len(wild)) % 2, 1.0, -1.0)
        found = penalty(step(d, ids))
        assert found.numbers["gain"] < 0.05
        assert found.result == result


def test_the_lean_is_that_of_the_test_of_mantel_and_haenszel() -> None:
    """The test is over 32 groups of 32 tokens that are as likely; tokens that are equal on both sides are in none."""
    rng = np.random.default_rng(5)
    ids = np.r_[np.arange(700), rng.integers(0, 700, 324)]
    d = rng.normal(0.0, 0.02, 1024) + np.where(np.arange(1024) < 700, -0.003, 0.003)
    d[::9] = 0.0
    one = step(d, ids)
    found = penalty(one)
    more = excess = variance = pairs = 0.0
    for group in np.array_split(np.argsort(one.rollout + one.train), 32):
        moved = group[d[group] != 0]
        seen, above = moved >= 700, d[moved] > 0
        chance = hypergeom(len(moved), int(above.sum()), int(seen.sum()))
        more += (seen & above).sum()
        excess += (seen & above).sum() - chance.mean()
        variance += chance.var()
        pairs += seen.sum() * (~seen).sum() / len(moved)
    assert more > 100
    assert found.numbers["tilt"] == pytest.approx(excess / pairs)
    assert found.numbers["errors"] == pytest.approx(excess / math.sqrt(variance))


def test_the_temperature_that_most_answers_were_sampled_at_is_the_one_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    odds = rng.uniform(0.3, 6.0, 1200) * np.where(rng.random(1200) < 0.8, 1.0, -1.0)
    one = step(np.zeros(1200), np.arange(1200))
    train, engine = -np.log1p(np.exp(-odds)), -np.log1p(np.exp(-odds / 0.7))
    offsets = np.array([0, 400, 800, 1200])
    three = replace(
        one,
        samples=["a", "b", "c"],
        kinds=["text"] * 3,
        offsets=offsets,
        rollout=engine,
        train=train,
        temperatures=np.array([0.7, 1.0, 0.7]),
    )
    assert "at a temperature of 0.7, which the trainer does not apply" in temperature(three).sentence
