"""Patterns of a changed distribution at the edges: the most likely token's logprobs, a temperature, a penalty."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.posted.step import Array, Index, Mask, PostedStep
from omni_rl.consistency.posted.transforms import explained, most_likely, penalty, quantile_bins, temperature
from tests.consistency.posted.by_hand import step

NOISE = 0.01


def test_the_variance_between_bins_is_what_they_explain() -> None:
    d = np.array([1.0, 3.0, 5.0, 7.0])
    assert explained(d, np.array([0, 0, 1, 1])) == pytest.approx(4 / 5)  # of 5, 1 is left
    assert explained(d, np.array([0, 0, 3, 3])) == pytest.approx(4 / 5)
    assert explained(d, np.zeros(4, np.int64)) == pytest.approx(0.0)
    assert explained(d, np.arange(4)) == pytest.approx(1.0)
    assert explained(np.full(4, 2.0), np.arange(4)) == 0.0


def test_bins_are_of_equal_counts() -> None:
    values = np.random.default_rng(0).permutation(3200).astype(np.float64)
    assert np.bincount(quantile_bins(values)).tolist() == [100] * 32
    assert quantile_bins(np.array([5.0, 1.0])).tolist() == [31, 0]


def sampled(tokens: int, seed: int = 0) -> tuple[Array, Array]:
    """The most likely token's logprob, and the sampled one's: itself with its probability, or a third of the rest."""
    rng = np.random.default_rng(seed)
    chance = rng.uniform(0.3, 0.99, tokens)
    # The share of them that were sampled is their mean probability at every level, and not that of chance.
    order = np.argsort(chance)
    hit = np.zeros(tokens, np.bool_)
    hit[order] = np.diff(np.floor(np.cumsum(chance[order])), prepend=0.0) > 0
    return np.log(chance), np.where(hit, np.log(chance), np.log((1 - chance) / 3))


@pytest.mark.parametrize("side", ["engine", "trainer"])
@pytest.mark.parametrize(("tokens", "result"), [(511, "clear"), (512, "explains")])
def test_the_most_likely_tokens_logprobs_agree_as_often_as_they_say(tokens: int, result: str, side: str) -> None:
    top, own = sampled(tokens)
    found = most_likely(step(*((top, own) if side == "engine" else (own, top))), NOISE)
    assert found.result == result
    if result == "explains":
        agree = float((top == own).mean())
        assert found.cause is Cause.LOGPROB_POSTPROCESSING
        assert found.sentence.startswith(
            f"the {side}'s logprobs are those of the most likely token, not of the sampled one: {agree:.0%} of tokens"
        )
        assert found.numbers["agree"] == pytest.approx(agree)
    else:
        assert found.sentence == "too few tokens to tell the most likely ones"


@pytest.mark.parametrize(
    ("share", "by", "result"),
    [
        (0.0, 0.0, "explains"),
        (0.04, 1.0, "explains"),
        (0.06, 1.0, "clear"),  # more of those that part are likelier than the most likely
        (0.04, -0.3, "explains"),
        (0.9, 1.25, "explains"),  # up to 0.2 above what the most likely token leaves
        (0.9, 1.4, "clear"),  # it does not leave so much
    ],
)
def test_what_was_sampled_has_what_the_most_likely_token_leaves(share: float, by: float, result: str) -> None:
    """A share of the tokens that part has other logprobs than a third of what is left: 1.1 less than all of it."""
    top, own = sampled(4000)
    parted = np.flatnonzero(top != own)
    some = parted[: round(share * len(parted))]
    if by == 1.0:
        own[some] = top[some] + 0.2
    else:
        own[some] = np.minimum(own[some] + by, top[some] - 0.12)
    assert most_likely(step(top, own), NOISE).result == result


def test_logprobs_that_agree_everywhere_or_too_seldom_are_no_most_likely_ones() -> None:
    top, own = sampled(2000)
    assert most_likely(step(top, top), NOISE).result == "clear"
    certain = np.full(2000, math.log(0.995))
    few = certain.copy()
    few[:19] = -6.0
    assert most_likely(step(certain, few), NOISE).result == "clear"
    few[19] = -6.0
    assert most_likely(step(certain, few), NOISE).result == "explains"
    seldom = own.copy()
    level = (top > math.log(0.6)) & (top < math.log(0.8))
    seldom[level] = np.log((1 - np.exp(top[level])) / 3)
    assert most_likely(step(top, seldom), NOISE).result == "clear", "at one level of likelihood they never agree"


@pytest.mark.parametrize("level", [0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_at_each_level_of_likelihood_they_agree_as_often_as_they_say(level: float) -> None:
    """As many of 60 tokens of one level agree as they say, or all, or none; as many of 600 of each other level as they
    say."""
    for agreeing, result in ((level, "explains"), (1.0 if level < 0.5 else 0.0, "clear")):
        shares = {chance: (chance, 600) for chance in (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)} | {level: (agreeing, 60)}
        top = np.concatenate([np.full(count, math.log(chance)) for chance, (_, count) in shares.items()])
        hit = np.concatenate([np.arange(count) < round(share * count) for share, count in shares.values()])
        own = np.where(hit, top, np.minimum(top - 0.5, np.log(-np.expm1(top)) - 1))
        assert most_likely(step(top, own), NOISE).result == result


def test_tokens_agree_up_to_eight_times_the_noise_that_they_show() -> None:
    top, own = sampled(4000)
    hit = np.flatnonzero(top == own)
    by = np.full(len(hit), 0.05)
    by[::50], by[1::50] = 0.42, 0.38
    own[top != own] -= 0.3
    own[hit] += by
    found = most_likely(step(top, own), 0.05)
    assert found.result == "explains"
    assert found.numbers["agree"] == pytest.approx((by < 0.4).sum() / 4000)


def two_temperatures(tokens: int, at: float, noise: float = 0.0, seed: int = 0) -> tuple[Array, Array]:
    """Logprobs of two likely ids and the rest, whose log-odds one side divides by a temperature."""
    rng = np.random.default_rng(seed)
    odds = rng.uniform(0.3, 6.0, tokens) * np.where(rng.random(tokens) < 0.8, 1.0, -1.0)
    train = -np.log1p(np.exp(-odds))
    engine = -np.log1p(np.exp(-odds / at)) + noise * rng.standard_normal(tokens) * (1 - np.exp(train))
    return np.minimum(engine, -2e-4), train


@pytest.mark.parametrize(
    ("tokens", "at", "result"),
    [
        (511, 0.7, "clear"),
        (512, 0.7, "explains"),
        (2000, 0.97, "explains"),
        (2000, 0.985, "clear"),  # it is too near to 1
        (2000, 1.03, "explains"),
        (2000, 1.015, "clear"),
        (2000, 1.5, "explains"),
    ],
)
def test_a_temperature_shows_in_likely_and_in_unlikely_tokens(tokens: int, at: float, result: str) -> None:
    engine, train = two_temperatures(tokens, at)
    found = temperature(step(engine, train))
    assert found.result == result
    if result == "explains":
        assert found.cause is Cause.LOGPROB_POSTPROCESSING
        assert found.numbers["fits"] == pytest.approx(at, rel=0.01)
        assert found.numbers["straight"] == pytest.approx(1.0, abs=0.05)
        assert f"those at a temperature of about {found.numbers['fits']:.2g} times the trainer's: " in found.sentence
        assert f": {found.numbers['level']:.0%} of the difference goes with how likely a token is" in found.sentence


@pytest.mark.parametrize(
    ("asked", "at", "said"),
    [
        (0.7, 0.7, "0.7, which the trainer does not apply"),
        (0.8, 0.7, "0.8, which the trainer does not apply"),
        (0.4, 0.7, "about 0.7 times the trainer's"),  # further from what it fits than no temperature is
        (0.7, 1 / 0.7, "1, not the ones it sampled by"),
        (1.3, 0.7, "1, not the ones it sampled by"),
        (0.0, 0.7, "about 0.7 times the trainer's"),
        (1.0, 0.7, "about 0.7 times the trainer's"),
    ],
)
def test_a_temperature_is_read_by_what_was_asked_for(asked: float, at: float, said: str) -> None:
    engine, train = two_temperatures(2000, at)
    found = temperature(replace(step(engine, train), temperatures=np.array([asked])))
    assert f"the engine's logprobs are those at a temperature of {said}: " in found.sentence
    assert found.numbers["asked"] == asked


def test_few_likely_tokens_say_nothing_of_a_temperature() -> None:
    """A quarter of the tokens that it takes, 128, must be likely and not certain."""
    engine, train = two_temperatures(4000, 0.7)
    likely = np.flatnonzero(np.minimum(engine, train) > math.log(0.5))
    unlikely = np.flatnonzero(np.minimum(engine, train) <= math.log(0.5))
    for count, result in ((127, "clear"), (128, "explains")):
        chosen = np.r_[likely[:count], unlikely[:450]]
        assert temperature(step(engine[chosen], train[chosen])).result == result
    sure = np.full(600, -1e-5)
    assert temperature(step(np.r_[sure, engine[unlikely]], np.r_[sure, train[unlikely]])).result == "clear"


def test_tokens_that_are_nearly_certain_say_nothing_of_a_temperature() -> None:
    """Their odds are what rounding makes of them."""
    engine, train = two_temperatures(2000, 0.7)
    found = temperature(step(np.r_[engine, np.full(100, -1e-9)], np.r_[train, np.full(100, -5e-5)]))
    assert found.numbers["fits"] == pytest.approx(0.7, rel=0.01)
    assert found.result == "explains"


def test_a_difference_that_does_not_go_with_the_odds_is_no_temperature() -> None:
    _, train = two_temperatures(2000, 1.0)
    odds = train - np.log(-np.expm1(train))
    noise = np.random.default_rng(3).standard_normal(2000)
    for by, result in ((0.0, "explains"), (0.3, "explains"), (2.0, "clear")):
        engine = -np.log1p(np.exp(-(0.8 * odds + by * noise)))
        assert temperature(step(engine, train)).result == result
    assert temperature(step(train, train)).result == "clear"


@pytest.mark.parametrize(
    ("tokens", "share", "result"),
    [
        (63, 0.96, "clear"),
        (64, 0.96, "explains"),
        (64, 0.94, "clear"),
        (511, 0.94, "clear"),
        (600, 0.94, "explains"),
        (600, 0.79, "clear"),  # the entropies do not move one way
    ],
)
def test_entropies_that_move_one_way_need_fewer_tokens(tokens: int, share: float, result: str) -> None:
    engine, train = two_temperatures(tokens, 0.7)
    higher = np.arange(tokens) < round(share * tokens)
    entropies = (np.where(higher, 1.0, 0.5), np.where(higher, 0.5, 1.0))
    found = temperature(replace(step(engine, train), entropies=entropies))
    assert found.result == result
    assert ("entropies do not differ one way" in found.sentence) is (share < 0.8)


def repeating(
    fresh: int, again: int, shift: float, back: float = 0.0, seed: int = 0, noise: float = 0.02
) -> tuple[PostedStep, Mask]:
    """Of each answer's tokens some have new ids and some came before: these are `shift` less likely at the engine, the
    others `back` likelier."""
    rng, answers = np.random.default_rng(seed), 16
    size = fresh + again
    ids = np.concatenate([np.r_[np.arange(fresh), rng.integers(0, fresh, again)] for _ in range(answers)])
    seen = np.tile(np.arange(size) >= fresh, answers)
    train = -rng.gamma(2.0, 1.0, size * answers) - 0.5
    rollout = train + noise * rng.standard_normal(len(train)) - np.where(seen, shift, -back)
    return step(rollout, train, answers, ids), seen


@pytest.mark.parametrize(("shift", "side"), [(0.3, "engine"), (-0.3, "trainer")])
def test_a_penalty_on_what_came_before_is_told_by_its_side(shift: float, side: str) -> None:
    given, seen = repeating(40, 24, shift, shift / 3)
    found = penalty(given)
    assert (found.result, found.cause) == ("explains", Cause.LOGPROB_POSTPROCESSING)
    other = "trainer" if side == "engine" else "engine"
    before, new = given.d[seen].mean(), given.d[~seen].mean()
    assert found.sentence == (
        f"tokens that were there before are less likely at the {side} (mean d {before:+.2g}) and new ones likelier "
        f"({new:+.2g}): the {side} applies a repetition, frequency or presence penalty that the {other} does not; "
        "switch it off"
    )
    assert found.numbers["d_mean_seen"] == pytest.approx(before)
    assert found.numbers["d_mean_new"] == pytest.approx(new)
    assert abs(found.numbers["tilt"]) > 0.4


def test_a_difference_of_all_tokens_is_no_penalty() -> None:
    assert penalty(repeating(40, 24, 0.3, -0.3)[0]).result == "clear"
    assert penalty(repeating(40, 24, 0.0, 0.0)[0]).result == "clear"
    assert penalty(replace(repeating(40, 24, 0.3)[0], ids=None)).result == "not_done"


def test_equal_logprobs_are_tilted_to_no_side() -> None:
    given, _ = repeating(40, 24, 0.0, noise=0.0)
    found = penalty(given)
    assert found.result == "clear"
    assert found.numbers == {"tilt": 0.0, "errors": 0.0, "tilt_of_ids": 0.0, "d_mean_seen": 0.0, "d_mean_new": 0.0}


@pytest.mark.parametrize(
    ("fresh", "again", "result"),
    [
        (40, 1, "explains"),  # 16 tokens that came before
        (30, 2, "explains"),
        (29, 2, "clear"),  # 496 tokens
        (1, 40, "explains"),
    ],
)
def test_few_tokens_say_nothing_of_a_penalty(fresh: int, again: int, result: str) -> None:
    given, _ = repeating(fresh, again, 0.5, 0.5)
    assert (penalty(given).result == "explains") is (result == "explains")


def test_what_stands_in_the_prompt_came_before() -> None:
    """No id comes twice in an answer; half of them stand in its prompt."""
    rng, answers, size = np.random.default_rng(1), 16, 64
    ids = np.concatenate([rng.permutation(size) for _ in range(answers)])
    seen = ids < size // 2
    train = -rng.gamma(2.0, 1.0, size * answers) - 0.5
    rollout = train + 0.02 * rng.standard_normal(len(train)) - np.where(seen, 0.3, -0.1)
    plain = step(rollout, train, answers, ids)
    assert penalty(plain).result == "clear"
    half = [np.arange(size // 2) for _ in range(answers)]
    assert penalty(replace(plain, prompts=half)).result == "explains"
    nothing: Sequence[Index] = [np.empty(0, np.int64)] * answers
    assert penalty(replace(plain, prompts=nothing)).result == "clear"
