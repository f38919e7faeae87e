"""What is off at one place of a step: in one answer among thousands, or at one position of every answer."""

from functools import cache

import numpy as np
import pytest

from omni_rl.consistency.limits import Severity
from omni_rl.consistency.posted.outliers import log_fortune
from omni_rl.consistency.posted.places import Places, Size
from omni_rl.consistency.posted.step import PostedStep
from tests.cases.judged import Judge
from tests.cases.world import Array, World, records

MANY = 3000


@cache
def many() -> tuple[World, Array, Array, Array, Array]:
    """A world of many short answers: it, the engine's logits, ids, and both sides' logprobs."""
    world = World(41, MANY, 24, 32)
    engine = world.engine(world.logits)
    ids = world.sample(engine)
    return world, engine, ids, world.logprobs(engine, ids), world.logprobs(world.logits, ids)


def test_two_rows_swapped_among_thousands_are_named() -> None:
    _, _, ids, rollout, train = many()
    swapped = rollout.copy()
    swapped[[800, 803]] = swapped[[803, 800]]
    found = Judge().rows(records(swapped, train, ids))
    assert (found.severity > Severity.OK, found.cause) == (True, "sample_pairing")
    assert "p100/0" in found.sentence
    assert "p100/3" in found.sentence


def test_one_answer_with_a_tool_mask_that_is_late_is_named() -> None:
    world, _, ids, rollout, train = many()
    rollout, train = rollout.copy(), train.copy()
    rollout[17, 5:9] = 0.0
    train[17, 5:9] = -world.rng.gamma(4, 1.5, 4)
    found = Judge().rows(records(rollout, train, ids))
    assert (found.severity > Severity.OK, found.cause) == (True, "loss_mask")
    assert "p2/1" in found.sentence


def test_one_answer_shifted_by_one_is_named() -> None:
    _, _, ids, rollout, train = many()
    rollout = rollout.copy()
    rollout[99, 3:-1] = rollout[99, 4:]
    found = Judge().rows(records(rollout, train, ids))
    assert (found.severity > Severity.OK, found.cause) == (True, "token_shift")
    assert "p12/3" in found.sentence


def test_one_token_of_a_long_answer_that_is_off_is_no_shift() -> None:
    """Where most tokens are certain, their neighbours' logprobs are theirs: the one token would be explained."""
    rng = np.random.default_rng(7)
    train = rng.uniform(-1.2e-3, -1e-3, (1, 16_000))
    rollout = train + 1e-6 * rng.standard_normal(train.shape)
    train[0, 3500] = -9.0
    found = Judge().rows(records(np.minimum(rollout, 0.0), train, rng.integers(0, 512, train.shape)))
    assert (found.severity > Severity.OK, found.cause) == (True, "unknown")


def test_an_answer_whose_own_mean_is_biased_is_told_though_no_limit_is_near() -> None:
    world = World(43, 200, 1024, 32)
    engine = world.engine(world.logits)
    best = engine[60].max(-1, keepdims=True)
    refused = (world.rng.random(engine[60].shape) < 0.5) & (engine[60] < best)
    engine[60] = np.where(refused, -np.inf, engine[60])
    ids = world.sample(engine)
    found = Judge().rows(records(world.logprobs(engine, ids), world.logprobs(world.logits, ids), ids))
    assert found.severity is Severity.WARN
    assert "p7/4" in found.sentence
    assert "less probability" in found.sentence


@pytest.mark.parametrize(("place", "said"), [(0, "the first tokens"), (-1, "the last tokens")])
def test_a_position_that_is_off_in_every_answer_is_told_though_the_mean_is_small(place: int, said: str) -> None:
    world = World(47, 128, 512, 32)
    engine = world.engine(world.logits)
    engine[:, place] += 2 * world.rng.standard_normal(engine[:, place].shape, dtype=np.float32)
    ids = world.sample(engine)
    found = Judge().rows(records(world.logprobs(engine, ids), world.logprobs(world.logits, ids), ids))
    assert (found.severity, found.cause) == (Severity.WARN, "unknown")
    assert said in found.sentence


def test_guided_decoding_of_the_first_token_alone_is_lost_support() -> None:
    world = World(53, 256, 64, 32)
    engine = world.engine(world.logits)
    engine[:, 0] = np.where(world.rng.random(engine[:, 0].shape) < 0.5, -np.inf, engine[:, 0])
    ids = world.sample(engine)
    found = Judge().rows(records(world.logprobs(engine, ids), world.logprobs(world.logits, ids), ids))
    assert (found.severity > Severity.OK, found.cause) == (True, "sampling_support")


def test_support_lost_in_a_step_of_few_answers_is_found() -> None:
    """Four answers say too little by their scatter, and enough by bets on their tokens."""
    world = World(59, 4, 256, 64)
    engine = np.where(np.isfinite(world.cut(top_p=0.9)), world.engine(world.logits), -np.inf)
    ids = world.sample(engine)
    found = Judge().rows(records(world.logprobs(engine, ids), world.logprobs(world.logits, ids), ids))
    assert (found.severity > Severity.OK, found.cause) == (True, "sampling_support")


@pytest.mark.parametrize("noise", [0.003, 0.05, 0.3])
def test_a_fortune_of_f_comes_up_in_one_of_f_answers_at_most(noise: float) -> None:
    """That holds for two proper policies, however far apart they are."""
    world = World(61, 4000, 32, 24, noise)
    engine = world.engine(world.logits)
    ids = world.sample(engine)
    d = world.logprobs(world.logits, ids) - world.logprobs(engine, ids)
    fortunes = np.array([log_fortune(of, 0.0, 0.0) for of in d])
    for chance in (0.1, 0.01, 0.001):
        assert (fortunes >= np.log(1 / chance)).mean() <= chance


def test_the_sums_of_places_are_those_of_their_tokens() -> None:
    rng = np.random.default_rng(3)
    lengths = np.array([0, 1, 7, 8, 9, 40, 2])
    total = int(lengths.sum())
    rollout = -rng.exponential(1, total)
    step = PostedStep(
        [f"a{n}" for n in range(7)],
        ["text"] * 4 + ["image"] * 3,
        np.concatenate([[0], np.cumsum(lengths)]),
        rollout,
        rollout + rng.normal(0, 0.1, total),
        rng.random(total) < 0.8,
        np.ones(7),
    )
    places = Places.of(step)
    for bucket, mean in places.unit_means.items():
        inside = places.inside(bucket) & step.judged
        assert mean.excess == pytest.approx(float(np.expm1(step.d[inside]).mean()) if inside.any() else 0.0)
    for bucket, size in places.positions.items():
        inside = places.inside(bucket) & step.judged
        assert size.mean == pytest.approx(float(np.abs(step.d[inside]).mean()))
    assert places.size.mean == pytest.approx(step.size)


def test_a_size_is_beyond_a_limit_by_standard_errors() -> None:
    assert Size(mean=0.5, error=0.05, answers=9).beyond(0.4) == pytest.approx(2)
    assert Size(mean=0.5, error=0.0, answers=9).beyond(0.4) > 1e6
    assert Size(mean=0.3, error=0.05, answers=9).beyond(0.4) == pytest.approx(-2)
