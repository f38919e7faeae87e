"""Shifts and swaps at the edges of what they explain, on answers whose logprobs are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.posted.alignment import sample_pairing, token_shift
from omni_rl.consistency.posted.step import Array, PostedStep

NOISE = 0.01


def drawn(*lengths: int, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [-rng.gamma(1.0, 1.5, length) for length in lengths]


def step(rollout: Sequence[Array], train: Sequence[Array]) -> PostedStep:
    lengths = [len(answer) for answer in rollout]
    return PostedStep(
        [f"a{n}" for n in range(len(lengths))],
        ["text"] * len(lengths),
        np.cumsum([0, *lengths]),
        np.concatenate(rollout),
        np.concatenate(train),
        np.ones(sum(lengths), np.bool_),
        np.ones(len(lengths)),
    )


def moved(answer: Array, by: int, start: int = 0) -> Array:
    """The answer with its tokens from `start` on in the places that come `by` places later; noise where none comes."""
    found = answer.copy()
    for at in range(start, len(answer)):
        found[at] = answer[at + by] if start <= at + by < len(answer) else -3.0
    return found


@pytest.mark.parametrize("by", [by for far in range(1, 10) for by in (far, -far)])
def test_a_shift_is_told_with_its_length_and_direction(by: int) -> None:
    train = drawn(60, 60, 60)
    found = token_shift(step([moved(answer, by) for answer in train], train), NOISE)
    if abs(by) > 8:
        assert (found.result, found.sentence) == ("clear", "no shift of tokens explains it")
        return
    assert (found.result, found.cause) == ("explains", Cause.TOKEN_SHIFT)
    far = f"{abs(by)} token{'s' if abs(by) > 1 else ''} {'after' if by > 0 else 'before'}"
    assert found.sentence.startswith(f"the engine's logprobs are the trainer's of {far} in 3 of 3 answers (a")
    assert "from the middle on" not in found.sentence
    assert (found.numbers["shift"], found.numbers["answers"]) == (by, 3.0)
    # A token counts as eight nats at most, and those at an edge have no partner.
    apart = np.minimum(np.abs([moved(answer, by) - answer for answer in train]), 8.0)
    size = apart.mean()
    assert found.numbers["abs_diff_mean"] == pytest.approx(size)
    assert f"shifted, the mean abs d falls from {size:.2g} to {found.numbers['abs_diff_mean_shifted']:.2g};" in (
        found.sentence
    )
    edge = apart[:, -by:] if by > 0 else apart[:, :-by]
    assert found.numbers["abs_diff_mean_shifted"] == pytest.approx(edge.sum() / 180)


def test_several_shifts_of_some_answers_are_told_furthest_first() -> None:
    train = drawn(80, 40, 60, 60, 60)
    rollout = [moved(train[0], 1), moved(train[1], -1), *train[2:]]
    found = token_shift(step(rollout, train), NOISE)
    assert found.sentence.startswith("the engine's logprobs are the trainer's of 1 token in 2 of 5 answers (a0, a1)")
    assert found.samples == ("a0", "a1")
    other = token_shift(step([moved(train[0], 2), moved(train[1], 1), *train[2:]], train), NOISE)
    assert "the trainer's of several tokens after in 2 of 5 answers" in other.sentence
    assert other.numbers["shift"] == 1.0


@pytest.mark.parametrize(("start", "middle"), [(0, False), (8, False), (9, True), (40, True)])
def test_a_shift_from_a_place_on_is_told_so(start: int, middle: bool) -> None:
    train = drawn(80, 80)
    found = token_shift(step([moved(answer, 1, start) for answer in train], train), NOISE)
    assert found.result == "explains"
    assert (", from the middle on (" in found.sentence) is middle


@pytest.mark.parametrize(("tokens", "result"), [(7, "clear"), (8, "explains")])
def test_few_tokens_are_shifted_by_chance(tokens: int, result: str) -> None:
    train = [np.linspace(-1.0, -8.0, tokens)[np.argsort(np.sin(np.arange(tokens)))]]
    assert token_shift(step([moved(train[0], 1)], train), 1e-6).result == result


def test_what_one_token_makes_is_no_shift() -> None:
    train = [np.full(40, -0.5)]
    rollout = train[0].copy()
    rollout[20] = -9.0
    assert token_shift(step([rollout], train), NOISE).result == "clear"


def test_a_step_within_noise_or_without_tokens_has_no_shift() -> None:
    train = drawn(40)
    near = [train[0] + 0.001 * np.sin(np.arange(40))]
    assert token_shift(step(near, train), NOISE).result == "clear"
    empty = token_shift(step([np.empty(0)], [np.empty(0)]), NOISE)
    assert (empty.result, empty.numbers["abs_diff_mean_shifted"]) == ("clear", 0.0)


def test_masked_tokens_are_no_partners() -> None:
    train = drawn(60)
    one = step([moved(train[0], 1)], train)
    assert token_shift(one, NOISE).result == "explains"
    assert token_shift(replace(one, counted=np.arange(60) % 2 == 0), NOISE).result == "clear"


@pytest.mark.parametrize(("shifted", "result"), [(25, "explains"), (12, "clear")])
def test_most_of_what_is_off_has_to_be_explained(shifted: int, result: str) -> None:
    """All of 40 answers are off by something else, or only those that are shifted."""
    train = drawn(*[40] * 40)
    other = drawn(*[40] * 40, seed=1)
    rollout = [moved(answer, 1) if n < shifted else other[n] for n, answer in enumerate(train)]
    assert token_shift(step(rollout, train), NOISE).result == result
    few = [moved(answer, 1) if n < shifted else answer for n, answer in enumerate(train)]
    assert token_shift(step(few, train), NOISE).result == "explains"
    assert token_shift(step(few, train), NOISE).samples[:8] == token_shift(step(few, train), NOISE).samples


def test_answers_that_are_off_by_less_have_to_be_explained_too() -> None:
    """12 of 40 answers are shifted, which is 0.56 of the difference; the others are half a nat off."""
    train = drawn(*[40] * 40)
    half = 0.5 * np.where(np.arange(40) % 2, 1.0, -1.0)
    for count, result in ((12, "clear"), (20, "explains")):
        rollout = [moved(answer, 1) if n < count else answer + half for n, answer in enumerate(train)]
        assert token_shift(step(rollout, train), NOISE).result == result


def test_one_shifted_answer_is_told_beside_many_that_are_within_noise() -> None:
    """The noise of all answers together is half of the difference, and needs no explanation."""
    train, noise = drawn(*[40] * 240), np.where(np.arange(40) % 2, 0.009, -0.009)
    rollout = [moved(train[0], 1), *(answer + noise for answer in train[1:])]
    found = token_shift(step(rollout, train), NOISE)
    assert (found.result, found.samples) == ("explains", ("a0",))
    assert found.numbers["abs_diff_mean_shifted"] > 0.4 * found.numbers["abs_diff_mean"]


def swapped(train: Sequence[Array], pairs: Mapping[int, int]) -> PostedStep:
    return step(
        [
            train[pairs.get(n, n)] + 1e-3 * np.cos(np.arange(len(answer)))[: len(train[pairs.get(n, n)])]
            for n, answer in enumerate(train)
        ],
        train,
    )


def test_swapped_answers_are_told_by_the_first_and_counted() -> None:
    train = drawn(*[40] * 10)
    found = sample_pairing(swapped(train, {2: 5, 5: 2, 7: 8, 8: 7}), NOISE)
    assert (found.result, found.cause, found.numbers["answers"]) == ("explains", Cause.SAMPLE_PAIRING, 4.0)
    assert set(found.samples) == {"a2", "a5", "a7", "a8"}
    first = int(found.samples[0][1:])
    assert found.sentence.startswith(
        f"4 answers carry another answer's logprobs: the engine's of a{first} are the trainer's of "
        f"a{ {2: 5, 5: 2, 7: 8, 8: 7}[first] }; paired so, the mean abs d of their first tokens falls from "
    )
    assert found.numbers["paired"] < 0.01 < found.numbers["abs_diff_mean"]
    one = sample_pairing(swapped(train, {2: 5}), NOISE)
    assert one.sentence.startswith(
        "1 answer carries another answer's logprobs: the engine's of a2 are the trainer's of a5"
    )
    assert "the mean abs d of its first tokens falls" in one.sentence
    engine = train[5] + 1e-3 * np.cos(np.arange(40))
    assert one.numbers == {
        "answers": 1.0,
        "abs_diff_mean": pytest.approx(np.minimum(np.abs(engine - train[2]), 8.0)[:32].mean()),
        "paired": pytest.approx(np.abs(engine - train[5])[:32].mean()),
    }


@pytest.mark.parametrize(("tokens", "result"), [(7, "clear"), (8, "explains")])
def test_of_few_tokens_nobody_knows_whose_they_are(tokens: int, result: str) -> None:
    train = drawn(*[tokens] * 6)
    assert sample_pairing(swapped(train, {1: 2, 2: 1}), NOISE).result == result


def test_an_answer_is_compared_by_its_first_tokens() -> None:
    """The 33rd token on may be anything; and a token counts as eight nats at most."""
    train = drawn(*[60] * 6)
    train[2][5] = -25.0
    one = swapped(train, {1: 2, 2: 1})
    rollout = one.rollout.copy()
    rollout[60 + 32 : 120] = rollout[120 + 32 : 180] = -30.0
    rollout[60 + 31] += 1.0
    found = sample_pairing(replace(one, rollout=rollout), NOISE)
    assert found.result == "explains"
    answers = rollout.reshape(6, 60)
    for name, pairs in (("abs_diff_mean", {1: 1, 2: 2}), ("paired", {1: 2, 2: 1})):
        apart = [np.minimum(np.abs(answers[n] - train[other]), 8.0)[:32].mean() for n, other in pairs.items()]
        assert found.numbers[name] == pytest.approx(np.mean(apart))
    rollout[60:92] = rollout[120:152] = -30.0
    assert sample_pairing(replace(one, rollout=rollout), NOISE).result == "clear"


@pytest.mark.parametrize(("share", "result"), [(0.35, "explains"), (0.45, "clear")])
def test_a_partner_has_to_be_much_nearer(share: float, result: str) -> None:
    """There are two answers: no third one says how near another answer is by chance."""
    tokens = np.arange(40)
    train = [np.where(tokens % 2, -1.0, -2.0), np.where(tokens % 2, -2.0, -1.0)]
    # Each is `share` of the two answers' distance from its partner's, and the rest from its own.
    rollout = [
        train[1] + share / (1 + share) * (train[0] - train[1]),
        train[0] + share / (1 + share) * (train[1] - train[0]),
    ]
    assert sample_pairing(step(rollout, train), NOISE).result == result


@pytest.mark.parametrize(("near", "result"), [(0.13, "explains"), (0.17, "clear")])
def test_the_partner_has_to_stand_out_from_the_other_answers(near: float, result: str) -> None:
    """The others are 1 nat from the two whose logprobs were swapped, up or down by turns."""
    tokens = np.arange(40)
    base = np.full(40, -5.0)
    train = [base + 3 * (tokens % 2), base, *(base + np.where((tokens + n) % 3, 1.0, -1.0) for n in range(4))]
    rollout = [base + near * np.where(tokens % 2, 1, -1), train[1], *train[2:]]
    assert sample_pairing(step(rollout, train), NOISE).result == result


def test_answers_within_noise_are_nobody_elses() -> None:
    train = [np.full(20, -2.0), np.full(20, -2.005), np.full(20, -4.0)]
    rollout = [train[1], train[0], train[2]]
    assert sample_pairing(step(rollout, train), NOISE).result == "clear"
    assert sample_pairing(step(rollout, train), 1e-3).result == "explains"


def test_answers_of_several_lengths_are_compared_where_both_have_tokens() -> None:
    train = drawn(30, 12, 40, 9, 25)
    rollout = [train[2][:30], train[1], np.concatenate([train[0], train[2][30:]]), *train[3:]]
    found = sample_pairing(step(rollout, train), NOISE)
    assert (found.result, set(found.samples)) == ("explains", {"a0", "a2"})
    assert found.numbers["paired"] == 0.0
    short = sample_pairing(step([train[0], train[2][:12], *train[2:]], train), NOISE)
    assert (short.result, short.samples) == ("explains", ("a1",))


def test_without_tokens_nothing_is_paired() -> None:
    found = sample_pairing(step([np.empty(0)], [np.empty(0)]), NOISE)
    assert (found.result, found.numbers) == ("clear", {"answers": 0.0, "abs_diff_mean": 0.0, "paired": 0.0})
