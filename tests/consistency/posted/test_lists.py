"""Entropies and lists of likeliest ids at the edges of what they show, on steps that are made of numbers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Finding
from omni_rl.consistency.posted.distributions import cut_off, one_way, other_ids, wrong_entry
from omni_rl.consistency.posted.step import Array, PostedStep, Top
from tests.consistency.posted import by_hand

NOISE = 0.01


def step(rollout: Sequence[float] | Array, train: Sequence[float] | Array) -> PostedStep:
    """An answer whose ids are all 7."""
    return by_hand.step(rollout, train, ids=[7] * len(rollout))


def listed(
    of: PostedStep, own: Sequence[float] | Array, first: Sequence[float] | Array | None = None, ids: int = 7
) -> PostedStep:
    """With the engine's list: of another id, which has the logprob `first`, and of `ids`, which has `own`."""
    logprobs = np.stack([np.full(len(own), -0.5) if first is None else np.asarray(first), np.asarray(own)], 1)
    return replace(of, top=Top(np.tile(np.array([3, ids], np.int32), (len(own), 1)), logprobs.astype(np.float32)))


@pytest.mark.parametrize(
    ("wrong", "by", "left", "result"),
    [
        (8, 1.0, 0.0, "explains"),
        (7, 1.0, 0.0, "clear"),
        (8, 0.0112, 0.0, "explains"),
        (8, 0.0108, 0.0, "clear"),  # it may be noise, or how the number is written
        (8, -1.0, 0.0, "explains"),
        (8, 1.0, 0.15, "explains"),  # of 1.15
        (8, 1.0, 0.3, "clear"),  # of 1.3, which is more than a fifth
        (8, 0.02, 0.014, "explains"),  # what is left is noise, of the 12 tokens together
        (8, 0.02, 0.016, "clear"),
    ],
)
def test_a_logprob_that_the_engine_lists_otherwise_is_another_ids(
    wrong: int, by: float, left: float, result: str
) -> None:
    """The trainer is further from the engine's list by `left`, and that is off by `by`."""
    own = np.linspace(-3.0, -2.0, 12)
    rollout = np.where(np.arange(12) < wrong, own + by, own)
    train = np.where(np.arange(12) < wrong, own - left if by > 0 else own + left, own)
    found = wrong_entry(listed(step(rollout, train), own), NOISE)
    assert (found.result, found.cause) == (result, Cause.LOGPROB_POSTPROCESSING if result == "explains" else None)


def test_another_ids_logprob_is_told_with_its_numbers() -> None:
    own, first = np.full(20, -3.0), np.full(20, -1.0)
    rollout = np.where(np.arange(20) < 10, first, own)
    given = listed(step(rollout, own), own, first)
    found = wrong_entry(given, NOISE)
    assert found.sentence == (
        "10 of 20 of the engine's logprobs are another id's (the most likely one's) than the posted one's, by its own "
        "list of likeliest ids (first: token 0 of a0, -1 for -3): taken from there, the mean abs d of these tokens "
        "falls from 1 to 0; take the sampled id's entry"
    )
    assert found.numbers == {"tokens": 10.0, "abs_diff_mean": 1.0}
    for others, is_first in ((1, False), (0, True)):
        moved = rollout.copy()
        moved[:others] = -2.0
        assert (
            "the most likely one's" in wrong_entry(listed(step(moved, own), own, first), NOISE).sentence
        ) is is_first
    masked = replace(given, counted=np.arange(20) >= 3)
    assert wrong_entry(masked, NOISE).result == "clear"
    assert "7 of 17" not in wrong_entry(masked, NOISE).sentence
    assert wrong_entry(listed(step(rollout, own), own, first, ids=8), NOISE).result == "clear", "it is not listed"


def test_without_ids_or_lists_no_entry_is_compared() -> None:
    plain = step([-1.0] * 9, [-2.0] * 9)
    assert wrong_entry(plain, NOISE).result == "not_done"
    assert wrong_entry(replace(listed(plain, [-2.0] * 9), ids=None), NOISE).result == "not_done"
    assert cut_off(plain, NOISE).result == other_ids(plain, NOISE).result == "not_done"
    assert one_way(plain) is None


def same_entropy(far: int, by: float, near: int, beside: float, apart: float, others: int = 0) -> Finding:
    """Tokens that are `by` nats off, whose entropies are `apart`, but for some that are 1 nat; and tokens that are
    not."""
    d = np.array([by] * far + [beside] * near)
    engine, trainer = np.ones(len(d)), np.ones(len(d)) + apart
    trainer[:others], trainer[far:] = 2.0, 3.0
    return other_ids(replace(step(np.full(len(d), -16.0), d - 16.0), entropies=(engine, trainer)), NOISE)


@pytest.mark.parametrize(
    ("far", "by", "near", "beside", "apart", "others", "result"),
    [
        (8, 1.0, 0, 0.0, 0.0, 0, "explains"),
        (7, 1.0, 0, 0.0, 0.0, 0, "clear"),
        (8, -1.0, 0, 0.0, 0.0, 0, "explains"),
        (8, 0.201, 0, 0.0, 0.0, 0, "explains"),
        (8, 0.199, 0, 0.0, 0.0, 0, "clear"),  # noise might be the reason
        (9, 1.0, 59, 0.1, 0.0, 0, "explains"),  # 9 of 14.9 nats
        (9, 1.0, 61, 0.1, 0.0, 0, "clear"),  # 9 of 15.1
        (8, 1.0, 0, 0.0, 0.0205, 0, "explains"),
        (8, 1.0, 0, 0.0, 0.0215, 0, "clear"),  # twice the noise and a thousandth
        (8, 1.0, 0, 0.0, -0.0205, 0, "explains"),
        (8, 1.0, 0, 0.0, -0.0215, 0, "clear"),
        (21, 1.0, 0, 0.0, 0.0, 2, "explains"),
        (21, 1.0, 0, 0.0, 0.0, 3, "clear"),
    ],
)
def test_one_distribution_on_both_sides_is_that_of_different_ids(
    far: int, by: float, near: int, beside: float, apart: float, others: int, result: str
) -> None:
    found = same_entropy(far, by, near, beside, apart, others)
    assert found.result == result
    if result == "explains":
        assert found.cause is Cause.LOGPROB_POSTPROCESSING
        assert f"where the logprobs are far apart ({far} tokens), both sides have the same entropy" in found.sentence
        assert found.numbers["tokens"] == far
        assert found.numbers["entropy_apart"] == pytest.approx(abs(apart))


def cut(inside: Sequence[float], outside: Sequence[float]) -> Finding:
    """Tokens of these d: those inside were sampled from a list that ends in ids that could not be."""
    d = np.array([*inside, *outside])
    first = np.where(np.arange(len(d)) < len(inside), -np.inf, -4.0)
    return cut_off(listed(step(np.full(len(d), -16.0), d - 16.0), np.full(len(d), -16.0), first), NOISE)


@pytest.mark.parametrize(
    ("inside", "outside", "result"),
    [
        ([-0.5] * 4, [0.0] * 9, "explains"),
        ([-0.5] * 3, [0.0] * 9, "clear"),
        ([0.5] * 4, [0.0] * 9, "clear"),
        ([-0.5] * 6, [0.1] * 19, "explains"),  # 3 of 4.9 nats
        ([-0.5] * 6, [0.1] * 21, "clear"),  # 3 of 5.1
        ([-0.05] * 6, [0.009] * 90, "explains"),  # elsewhere is noise alone
        ([-0.05] * 6, [0.011] * 90, "clear"),
        ([-0.67, 0.33] * 4, [0.0] * 9, "explains"),  # 0.34 of it is one-sided
        ([-0.63, 0.37] * 4, [0.0] * 9, "clear"),  # 0.26
    ],
)
def test_ids_that_could_not_be_sampled_are_lost_support_where_the_difference_is(
    inside: list[float], outside: list[float], result: str
) -> None:
    assert cut(inside, outside).result == result


def test_lost_support_is_told_with_its_share() -> None:
    found = cut([-0.5] * 4, [0.125] * 4)
    assert (found.result, found.cause) == ("explains", Cause.SAMPLING_SUPPORT)
    assert found.numbers == {"share": 0.5, "abs_diff_mean": 0.3125, "left": 0.125}
    assert found.sentence.startswith(
        "at 50.0% of the tokens the engine's own list of 2 likeliest ids ends in ids that could not be sampled, and "
        "there the trainer's logprobs are lower by 0.5 (elsewhere the mean abs d is 0.12): the engine sampled from part"
    )


@pytest.mark.parametrize(
    ("engine", "trainer", "share"),
    [
        ([1.0] * 8, [0.9] * 8, 1.0),
        ([0.9] * 8, [1.0] * 8, 1.0),
        ([1.0] * 8, [0.9] * 6 + [1.1] * 2, 0.75),
        ([1.0] * 8, [1.1] * 6 + [0.9] * 2, 0.75),
        ([1.0] * 7, [0.9] * 7, None),
        ([0.11] * 8 + [0.09] * 8, [0.0] * 8 + [0.08] * 4 + [0.095] * 4, 1.0),  # half of them are not open
        ([0.0] * 8, [0.11] * 8, 1.0),
        ([0.09] * 8, [0.0] * 8, None),
    ],
)
def test_entropies_say_whether_one_side_has_more_to_choose_from(
    engine: list[float], trainer: list[float], share: float | None
) -> None:
    plain = step([-1.0] * len(engine), [-1.0] * len(engine))
    assert one_way(replace(plain, entropies=(np.array(engine), np.array(trainer)))) == share


def test_entropies_of_tokens_that_do_not_count_say_nothing() -> None:
    plain = step([-1.0] * 16, [-1.0] * 16)
    engine, trainer = np.ones(16), np.r_[np.zeros(8), np.full(8, 2.0)]
    masked = replace(plain, counted=np.arange(16) < 8, entropies=(engine, trainer))
    assert one_way(masked) == 1.0
