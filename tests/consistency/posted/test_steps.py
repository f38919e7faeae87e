"""What a posted step says of its tokens, and which of its answers are searched."""

import math
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.posted.step import PostedStep, Proofs, Top
from omni_rl.consistency.records import SampleRecord


def step(answers: int, tokens: int = 4) -> PostedStep:
    """Answers that are further apart the later they come; with everything that may be posted."""
    at = np.repeat(np.arange(answers), tokens)
    size = len(at)
    return PostedStep(
        [f"a{n}" for n in range(answers)],
        [f"kind{n}" for n in range(answers)],
        np.arange(answers + 1) * tokens,
        np.full(size, -16.0),
        -16.0 + at / 64,
        np.arange(size) % 4 != 3,
        np.arange(answers) / 2,
        ids=np.arange(size),
        prompts=[np.array([n]) for n in range(answers)],
        proofs=Proofs(tensors=3),
        entropies=(at + 1.0, at + 2.0),
        top=Top(np.stack([at, at], 1).astype(np.int32), -np.stack([at, at], 1).astype(np.float32)),
    )


@pytest.mark.parametrize(
    ("tokens", "samples"),
    [(20, 5), (19, 4), (17, 4), (16, 3), (9, 2), (8, 1), (5, 1), (1, 1)],
)
def test_the_furthest_answers_are_taken_until_they_hold_the_tokens(tokens: int, samples: int) -> None:
    whole = step(5)
    found = whole.furthest(tokens)
    assert found.samples == [f"a{n}" for n in range(5 - samples, 5)]
    assert (found is whole) is (tokens >= 20)


def test_a_part_of_a_step_has_all_that_the_step_has_of_its_answers() -> None:
    found = step(5).furthest(9)
    chosen = np.repeat([3, 4], 4)
    assert (found.samples, found.kinds) == (["a3", "a4"], ["kind3", "kind4"])
    assert found.offsets.tolist() == [0, 4, 8]
    assert found.train.tolist() == (-16.0 + chosen / 64).tolist()
    assert found.rollout.tolist() == [-16.0] * 8
    assert found.counted.tolist() == [True, True, True, False] * 2
    assert found.temperatures.tolist() == [1.5, 2.0]
    assert found.ids is not None
    assert found.ids.tolist() == list(range(12, 20))
    assert found.prompts == [np.array([3]), np.array([4])]
    assert found.proofs == Proofs()
    assert found.entropies is not None
    assert [of.tolist() for of in found.entropies] == [(chosen + 1).tolist(), (chosen + 2).tolist()]
    assert found.top is not None
    assert found.top.ids[:, 0].tolist() == (-found.top.logprobs[:, 1]).tolist() == chosen.tolist()
    bare = replace(step(5), ids=None, prompts=None, entropies=None, top=None).furthest(9)
    assert (bare.ids, bare.prompts, bare.entropies, bare.top) == (None, None, None, None)


@pytest.mark.parametrize("answers", [2, 64, 100])
def test_some_answers_are_from_all_over_the_step(answers: int) -> None:
    whole = step(answers)
    assert whole.some(4 * answers) is whole
    assert len(whole.some(4 * answers - 1)) == answers - 1
    few = sorted(int(name[1:]) for name in whole.some(4 * answers // 2 + 1).samples)
    assert np.diff(few).max(initial=0) < answers / 4
    assert len(few) == answers // 2


def test_a_token_that_is_off_by_more_counts_as_eight_nats() -> None:
    train = np.array([-1.0, -40.0, -8.5, 0.0])
    rollout = np.array([-9.5, -1.0, -1.0, -math.inf])
    one = replace(step(1), rollout=rollout, train=train, counted=np.ones(4, np.bool_))
    assert one.d.tolist() == [8.0, -8.0, -7.5, 0.0]
    assert one.judged.tolist() == [True, True, True, False]
    assert one.tokens == 3
    assert one.size == pytest.approx(23.5 / 3)
    nothing = replace(one, counted=np.zeros(4, np.bool_))
    assert (nothing.tokens, nothing.size) == (0, 0.0)


def test_tokens_that_do_not_count_are_in_no_sum() -> None:
    whole = step(4)
    assert whole.lengths.tolist() == [3, 3, 3, 3]
    assert whole.by_answer(whole.d).tolist() == [n * 3 / 64 for n in range(4)]
    assert whole.of_answers([1, 3]).tolist() == [False] * 4 + [True] * 4 + [False] * 4 + [True] * 4
    assert whole.apart(whole.of_answers([1, 3])) == (2 / 64, 1 / 64)
    assert whole.apart(np.zeros(16, np.bool_)) == (0.0, 1.5 / 64)
    assert whole.apart(np.ones(16, np.bool_)) == (1.5 / 64, 0.0)
    rest = whole.without(whole.of_answers([3]))
    assert (rest.tokens, rest.size) == (9, 1 / 64)
    assert whole.place(9) == "token 1 of a2"
    assert [(name, own is whole.rollout) for name, own, _ in whole.sides] == [("engine", True), ("trainer", False)]


def test_columns_alone_make_a_step_of_the_tokens_that_count_and_are_of_one_state() -> None:
    logprobs = np.array([-1.0, -2.0, -3.0, -4.0])
    columns = StepColumns.of([SampleRecord(name, name, 2, logprobs, logprobs) for name in ("text", "image")])
    plain = PostedStep.of(columns)
    assert plain.counted.all()
    assert (plain.kinds, plain.temperatures.tolist(), plain.ids) == (["text", "image"], [1.0, 1.0], None)
    mask, mixed = np.arange(8) != 1, np.arange(8) >= 6
    assert PostedStep.of(replace(columns, loss_mask=mask)).counted.tolist() == mask.tolist()
    assert PostedStep.of(replace(columns, mixed_state=mixed)).counted.tolist() == (~mixed).tolist()
    both = PostedStep.of(replace(columns, loss_mask=mask, mixed_state=mixed))
    assert both.counted.tolist() == (mask & ~mixed).tolist()
