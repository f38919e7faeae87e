"""Other members of the kinds of faults that real teams reported, and steps where nothing is wrong.

The reported faults themselves: tests/services/test_cases.py.
"""

import re
from functools import cache

import numpy as np
import pytest

from omni_rl.consistency.limits import Severity
from tests.cases.judged import Judge
from tests.cases.others import Other, bfloat16, others
from tests.cases.world import World, records


@cache
def _others(seed: int) -> dict[str, Other]:
    return {other[0]: other for other in others(seed, answers=32, tokens=192, ids=256)}


@pytest.mark.parametrize("seed", [21, 22])
def test_other_members_of_each_kind_come_out_right(seed: int) -> None:
    wrong = []
    for name, rows, causes in _others(seed).values():
        found = Judge().rows(rows)
        seen = found.severity > Severity.OK
        if (None not in causes and not seen) or (seen and found.cause not in causes):
            wrong.append((name, found.severity.label, found.cause, found.sentence))
    assert not wrong


@pytest.mark.parametrize(("answers", "tokens"), [(16, 48), (32, 32)])
@pytest.mark.parametrize(("penalty", "presence"), [(1.02, False), (1.05, False), (0.1, True), (0.3, True)])
def test_a_light_penalty_shows_in_few_words_that_come_again(
    answers: int, tokens: int, penalty: float, presence: bool
) -> None:
    """The answers are short and the ids many: one token in twenty came before."""
    world = World(23, answers, tokens, 400)
    world.logits = world.logits - np.log(1 + np.arange(400, dtype=np.float32))
    logits, ids = world.penalised(penalty, presence=presence)
    found = Judge().rows(records(world.logprobs(logits, ids), world.logprobs(world.logits, ids), ids))
    assert (found.severity > Severity.OK, found.cause) == (True, "logprob_postprocessing"), found
    assert "tokens that were there before are less likely at the engine" in found.sentence


@pytest.mark.parametrize("seed", [21, 22])
def test_guided_decoding_at_few_places_of_a_small_step_is_lost_support(seed: int) -> None:
    world = World(seed, 16, 96, 400)
    free = world.rng.random((16, 96, 1)) >= 0.05
    allowed = np.where(free | (world.rng.random(world.shape) < 0.1), world.engine(world.logits), -np.inf)
    ids = world.sample(allowed)
    found = Judge().rows(records(world.logprobs(allowed, ids), world.logprobs(world.logits, ids), ids))
    assert (found.severity > Severity.OK, found.cause) == (True, "sampling_support"), found
    assert "guided decoding or banned tokens, at " in found.sentence
    share = re.search(r"and (\d+)% of the difference lies on one side", found.sentence)
    assert share is not None
    assert 80 < int(share[1]) <= 100


@pytest.mark.parametrize("at", [0.6, 1.7])
def test_logprobs_at_a_temperature_are_told_where_the_answers_are_said_to_be_greedy(at: float) -> None:
    world = World(21, 32, 96, 256)
    engine = world.engine(world.logits / at)
    ids = world.sample(engine)
    rollout, train = world.logprobs(engine, ids), world.logprobs(world.logits, ids)
    found = Judge().rows(records(rollout, train, ids, temperature=0.0))
    assert (found.severity > Severity.OK, found.cause) == (True, "logprob_postprocessing"), found
    fits = re.search(r"logprobs are those at a temperature of about ([\d.]+) times the trainer's", found.sentence)
    assert fits is not None
    assert float(fits[1]) == pytest.approx(at, rel=0.15)


@pytest.mark.parametrize(
    ("at", "told"), [(0.6, "0.6, which the trainer does not apply"), (1 / 0.6, "1, not the ones it sampled by")]
)
def test_which_side_does_not_apply_the_posted_temperature_is_told(at: float, told: str) -> None:
    world = World(21, 32, 96, 256)
    engine = world.engine(world.logits / at)
    ids = world.sample(engine)
    rollout, train = world.logprobs(engine, ids), world.logprobs(world.logits, ids)
    found = Judge().rows(records(rollout, train, ids, temperature=0.6))
    assert f"logprobs are those at a temperature of {told}" in found.sentence


def test_common_words_that_training_makes_rarer_are_no_penalty() -> None:
    """They come again more often than rare ones do, whichever side counts them."""
    world = World(24, 64, 64, 400)
    common = np.log(1 + np.arange(400, dtype=np.float32))
    world.logits = world.logits - common
    engine = world.engine(world.logits) + 0.15 * common
    ids = world.sample(engine)
    found = Judge().rows(records(world.logprobs(engine, ids), world.logprobs(world.logits, ids), ids))
    assert found.cause != "logprob_postprocessing", found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_clean_steps_of_any_shape_raise_nothing(dtype: str) -> None:
    rng = np.random.default_rng(5)
    for answers, tokens in ((8, 16), (8, 200), (40, 32), (256, 4), (64, 64)):
        judge = Judge(dtype)
        for _ in range(12):
            noise = 2e-7 if dtype == "float32" else 0.012
            w = World(int(rng.integers(2**31)), answers, tokens, 64, noise)
            engine = w.engine(w.logits)
            ids = w.sample(engine)
            found = judge.rows(records(w.logprobs(engine, ids), w.logprobs(w.logits, ids), ids))
            assert found.severity is Severity.OK, (answers, tokens, found)


@pytest.mark.parametrize(("dtype", "said"), [("float16", "kept in float16"), ("bfloat16", "kept in bfloat16")])
def test_a_float32_run_whose_logprobs_are_kept_in_fewer_bits_is_told_so(dtype: str, said: str) -> None:
    world = World(31, 32, 128, 128, 2e-7)
    engine = world.engine(world.logits)
    ids = world.sample(engine)
    rollout, train = world.logprobs(engine, ids), world.logprobs(world.logits, ids)
    kept = bfloat16(rollout) if dtype == "bfloat16" else rollout.astype(np.float16).astype(np.float64)
    found = Judge("float32").rows(records(kept, train, ids))
    assert (found.severity > Severity.OK, found.cause) == (True, "rounding")
    assert f"the engine's logprobs are {said}" in found.sentence


@pytest.mark.parametrize("equal", [0.0, 0.4])
def test_a_float32_run_of_which_one_side_computes_in_a_coarser_dtype_is_told_so_once_that_stays(equal: float) -> None:
    """That holds however many of the run's tokens are the same on both sides."""
    judge, causes = Judge("float32"), []
    for seed in range(5):
        world = World(seed, 64, 128, 64)
        engine = world.engine(world.logits)
        ids = world.sample(engine)
        rollout, train = world.logprobs(engine, ids), world.logprobs(world.logits, ids)
        same = world.rng.random(train.shape) < equal
        found = judge.rows(records(np.where(same, train, rollout), train, ids))
        assert found.severity > Severity.OK
        causes.append(found.cause)
    assert causes == ["unknown", "unknown", "unknown", "rounding", "rounding"]
    assert "as far apart as float16 is, at each of 5 steps" in found.sentence


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_are_off_are_no_swap_because_another_certain_answer_comes_near(seed: int) -> None:
    """Half of the answers are scored by other weights. Most tokens of every answer are certain, so that one answer of
    twenty is near any other's by chance; rows that were swapped are told all the same."""
    world = World(seed, answers=20, tokens=24, ids=32)
    scale = np.r_[0.5, np.full(23, 6.0)][None, :, None]
    world.logits = (np.random.default_rng(seed).standard_normal(world.shape) * scale).astype(np.float32)
    engine = world.engine(world.logits)
    ids = world.sample(engine)
    rollout, train = world.logprobs(engine, ids), world.logprobs(world.logits, ids)
    stale = np.concatenate([train[:10], world.logprobs(world.elsewhere(4.0), ids)[10:]])
    assert Judge().rows(records(rollout, stale, ids)).cause != "sample_pairing"
    rollout[[0, 1, 2, 3]] = rollout[[1, 0, 3, 2]]
    assert Judge().rows(records(rollout, train, ids)).cause == "sample_pairing"


def test_swapped_rows_are_told_with_what_swapping_them_back_leaves() -> None:
    world = World(8, 12, 24, 64, 1e-7)
    engine = world.engine(world.logits)
    ids = world.sample(engine)
    rollout, train = world.logprobs(engine, ids), world.logprobs(world.logits, ids)
    rollout[[2, 5]] = rollout[[5, 2]]
    apart = np.abs(rollout - train)[[2, 5]].mean()
    found = Judge("float32").rows(records(rollout, train, ids))
    assert "2 answers carry another answer's logprobs" in found.sentence
    assert f"the mean abs d of their first tokens falls from {apart:.2g} to " in found.sentence


@pytest.mark.parametrize("first", [0, 1, 2, 7, 8, 16])
def test_answers_that_begin_with_masked_tokens_are_not_called_swapped(first: int) -> None:
    """Where few tokens count, among the first ones or at all, they come near another answer's by chance."""
    rng = np.random.default_rng(first)
    train = -rng.gamma(1.0, 1.0, (32, 96))
    rollout = np.minimum(train - rng.normal(-0.05, 0.3, train.shape), -1e-6)
    at = np.arange(96)
    for counted in ((at >= 48) | (at < first), at < first):
        found = Judge().rows(records(rollout, train, loss_mask=np.tile(counted, (32, 1))))
        assert found.cause != "sample_pairing", found


@pytest.mark.parametrize("begin", [np.zeros(32, np.int64), np.full(32, 48), 40 + np.arange(32) // 8 * 4])
def test_swapped_rows_are_found_wherever_the_tokens_that_count_begin(begin: np.ndarray) -> None:
    world = World(8, 32, 96, 64)
    engine = world.engine(world.logits)
    ids = world.sample(engine)
    rollout, train = world.logprobs(engine, ids), world.logprobs(world.logits, ids)
    rollout[[2, 13, 21]] = rollout[[13, 21, 2]]
    counted = np.arange(96) >= begin[:, None]
    found = Judge().rows(records(rollout, train, loss_mask=counted))
    assert (found.severity > Severity.OK, found.cause) == (True, "sample_pairing"), found
    told = re.match(
        "3 answers carry another answer's logprobs: the engine's of (.*) are the trainer's of (.*); paired so",
        found.sentence,
    )
    assert told is not None
    assert told.groups() in {("p0/2", "p1/5"), ("p1/5", "p2/5"), ("p2/5", "p0/2")}


@pytest.mark.parametrize(("answers", "proper"), [(2, False), (64, True)])
def test_few_answers_do_not_show_that_both_sides_are_proper_policies(answers: int, proper: bool) -> None:
    """The engine has other weights: the unit mean of many answers is surely near 1, that of two says nothing."""
    world = World(20, answers, 24, 64, 1e-7)
    engine = world.elsewhere(2.0)
    ids = world.sample(engine)
    found = Judge("float32").rows(records(world.logprobs(engine, ids), world.logprobs(world.logits, ids), ids))
    assert (found.severity, found.cause) == (Severity.PAUSE, "unknown")
    assert ("both sides are proper policies" in found.sentence) is proper


@pytest.mark.parametrize(("until", "cause"), [(300, "stale_weights"), (150, None)])
def test_one_whole_answer_by_weights_that_no_other_had_is_told_and_one_that_began_before_an_update_is_not(
    until: int, cause: str | None
) -> None:
    world = World(3, 16, 300, 64, 2e-7)
    engine = world.engine(world.logits)
    ids = world.sample(engine)
    spans = [[{"version": "r/1/7/aa", "start": 0, "end": 300}] for _ in range(16)]
    rest = [{"version": "r/1/7/aa", "start": until, "end": 300}] if until < 300 else []
    spans[3] = [{"version": "r/1/6/bb", "start": 0, "end": until}, *rest]
    rows = records(world.logprobs(engine, ids), world.logprobs(world.logits, ids), ids, version_spans=spans)
    found = Judge("float32").rows([row | {"train_version": "r/1/7/aa"} for row in rows])
    assert found.cause == cause
    assert ("1 of 16 answers (p0/3) was sampled under r/1/6/bb" in found.sentence) is (cause is not None)


@pytest.mark.parametrize(
    ("sampled", "scored", "lag", "severity"),
    [
        ("r/1/7/aa", "r/1/9/bb", 2, Severity.OK),
        ("r/1/7/aa", "r/1/9/bb", 1, Severity.WARN),
        ("r/1/10/aa", "r/1/9/bb", 2, Severity.WARN),  # it is ahead
        ("r/1/9/aa", "r/1/9/bb", 2, Severity.WARN),  # one number, two digests
        ("r/2/8/aa", "r/1/9/bb", 2, Severity.WARN),  # of another attempt
        ("step-8", "r/1/9/bb", 2, Severity.WARN),  # nobody knows how far
        ("r/1/8", "r/1/9/bb", 2, Severity.WARN),
        ("r/1//aa", "r/1/9/bb", 2, Severity.WARN),
        ("r/1/\N{SUPERSCRIPT EIGHT}/aa", "r/1/9/bb", 2, Severity.WARN),
        ("step-8", "step-9", 1, Severity.OK),
        ("step-7", "step-9", 1, Severity.WARN),
        ("step-10", "step-9", 1, Severity.WARN),  # it is ahead
        ("step-8", "global-9", 1, Severity.WARN),
        ("9", "10", 1, Severity.OK),
        ("8", "10", 1, Severity.WARN),
        ("11", "10", 1, Severity.WARN),  # it is ahead
        ("9", "10", 0, Severity.WARN),
        ("9", "r/1/10/bb", 1, Severity.WARN),
    ],
)
def test_a_lag_within_what_the_run_allows_is_not_told(sampled: str, scored: str, lag: int, severity: Severity) -> None:
    world = World(3, 16, 32, 64, 2e-7)
    engine = world.engine(world.logits)
    ids = world.sample(engine)
    rows = records(world.logprobs(engine, ids), world.logprobs(world.logits, ids), ids, train_version=scored)
    spans = [{"version": sampled, "start": 0, "end": 32}]
    found = Judge("float32", lag).rows([row | {"version_spans": spans} for row in rows])
    assert (found.severity, found.cause) == (severity, "stale_weights" if severity is Severity.WARN else None)
