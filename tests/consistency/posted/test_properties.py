"""What must hold of any step, whatever its size, vocabulary, lengths, noise and ranks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_rl.consistency.limits import Severity
from tests.cases.judged import Judge, Judged
from tests.cases.world import Array, World, records

SHAPES = st.tuples(st.integers(8, 48), st.integers(8, 64), st.sampled_from([16, 64, 200]))
SEEDS = st.integers(0, 2**31 - 1)
NOISE = st.sampled_from([0.004, 0.012, 0.02])
GARBAGE = (0.0, 1.0, 5.0, -9999.0, -1e9, np.nan, np.inf, -np.inf)


def both(world: World, engine: Array | None = None) -> tuple[Array, Array, Array]:
    """Ids that the engine sampled, and both sides' logprobs of them."""
    logits = world.engine(world.logits) if engine is None else engine
    ids = world.sample(logits)
    return ids, world.logprobs(logits, ids), world.logprobs(world.logits, ids)


@given(SHAPES, SEEDS, NOISE)
@settings(deadline=None, max_examples=40)
def test_a_clean_step_is_ok_however_its_masked_tokens_look(
    shape: tuple[int, int, int], seed: int, noise: float
) -> None:
    world = World(seed, *shape, noise)
    ids, rollout, train = both(world)
    mask = world.rng.random(rollout.shape) >= 0.3
    mask[:, 0] = True
    rollout, train = (np.where(mask, of, world.rng.choice(GARBAGE, of.shape)) for of in (rollout, train))
    found = Judge().rows(records(rollout, train, ids, loss_mask=list(mask)))
    assert (found.severity, found.cause) == (Severity.OK, None)


def _without_names(found: Judged) -> tuple[Severity, str | None]:
    return found.severity, found.cause


@given(SHAPES, SEEDS, st.sampled_from(["clean", "shift", "temperature", "tool"]))
@settings(deadline=None, max_examples=30)
def test_masked_tokens_never_matter(shape: tuple[int, int, int], seed: int, fault: str) -> None:
    world = World(seed, *shape)
    ids, rollout, train = both(world, world.engine(world.logits) / 0.7 if fault == "temperature" else None)
    if fault == "shift":
        rollout = np.concatenate([rollout[:, 1:], rollout[:, :1]], 1)
    if fault == "tool":
        rollout[:, 3:6], train[:, 3:6] = 0.0, -world.rng.gamma(4, 1.5, (shape[0], 3))
    mask = world.rng.random(rollout.shape) >= 0.3
    outcomes = set()
    for _ in range(2):
        one, other = (np.where(mask, of, world.rng.choice(GARBAGE, of.shape)) for of in (rollout, train))
        outcomes.add(_without_names(Judge().rows(records(one, other, ids, loss_mask=list(mask)))))
    assert len(outcomes) == 1


@given(SHAPES, SEEDS)
@settings(deadline=None, max_examples=30)
def test_ranks_do_not_matter(shape: tuple[int, int, int], seed: int) -> None:
    """The same answers are posted by one rank, or by two that name theirs alike."""
    world = World(seed, *shape)
    ids, rollout, train = both(world, world.elsewhere(0.4))
    half = shape[0] // 2
    alone = Judge().rows(records(rollout, train, ids))
    parts = [records(rollout[a:b], train[a:b], ids[a:b]) for a, b in ((0, half), (half, shape[0]))]
    assert _without_names(Judge().rows(*parts)) == _without_names(alone)


@given(SHAPES, SEEDS, st.sampled_from(["raw", "unknown"]), st.sampled_from([0.7, 1.3]))
@settings(deadline=None, max_examples=30)
def test_the_sign_of_raw_logprobs_names_no_cause(
    shape: tuple[int, int, int], seed: int, of: str, temperature: float
) -> None:
    """Answers are sampled at one temperature, with logprobs at 1: the mean of exp(d) is not 1, and nothing is lost."""
    world = World(seed, *shape)
    engine = world.engine(world.logits)
    ids = world.sample(engine / temperature)
    rows = records(world.logprobs(engine, ids), world.logprobs(world.logits, ids), ids, logprobs_of=of)
    assert Judge().rows(rows).cause is None
    cut = np.where(np.isfinite(world.cut(top_p=0.9)), engine, -np.inf)
    ids = world.sample(cut)
    rows = records(world.logprobs(cut, ids), world.logprobs(world.logits, ids), ids, logprobs_of=of)
    assert Judge().rows(rows).cause != "sampling_support"


@given(SHAPES, SEEDS)
@settings(deadline=None, max_examples=30)
def test_a_sure_policy_is_ok(shape: tuple[int, int, int], seed: int) -> None:
    """Most logprobs are exactly 0.0, on both sides."""
    world = World(seed, *shape)
    sure = world.logits * 6
    engine = sure + world.kernel
    ids = world.sample(engine)
    found = Judge().rows(records(world.logprobs(engine, ids), world.logprobs(sure, ids), ids))
    assert (found.severity, found.cause) == (Severity.OK, None)
