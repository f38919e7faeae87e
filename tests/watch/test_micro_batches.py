"""Steps that a loss function meets in pieces, and the boundary between a hook and its run."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from omni_rl.errors import RunPausedError
from omni_rl.watch.guard import guarded
from omni_rl.watch.micro_batches import AnswerTensors, MicroBatches


@pytest.fixture
def posted() -> list[Any]:
    return []


@pytest.fixture
def gathers(posted: list[Any]) -> Iterator[MicroBatches]:
    found = MicroBatches()
    found.begin(lambda *step: posted.append(step))
    yield found
    found.close()


def answer(length: int) -> AnswerTensors:
    row = torch.arange(length, dtype=torch.bfloat16)
    return AnswerTensors(row, row.clone().requires_grad_(), torch.ones(length, dtype=torch.bool))


def optimizer(rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def lengths(posted: list[Any]) -> list[tuple[int, list[int]]]:
    """Each step's number, and how many tokens its answers have."""
    return [(number, [len(row) for row in rollout]) for number, rollout, _, _ in posted]


def test_a_step_ends_when_the_first_optimizer_steps(gathers: MicroBatches, posted: list[Any]) -> None:
    first, second = optimizer(), optimizer()
    again = answer(2)
    for given in (answer(3), again, again):
        gathers.add(given)
    for steps in (second, first, second):
        steps.step()
    gathers.add(answer(4))
    third = optimizer()  # made anew in the midst of the run
    for steps in (third, second, third):
        steps.step()
    assert lengths(posted) == [(0, [3, 2]), (1, []), (2, [4]), (3, [])]
    _, rollout, train, mask = posted[0]
    assert rollout[0].tolist() == train[0].tolist() == [0.0, 1.0, 2.0]
    assert mask[1].dtype == np.bool_


def test_a_rank_whose_answers_come_later_has_an_empty_part_of_the_steps_before_them(posted: list[Any]) -> None:
    gathers = MicroBatches()
    first, second = optimizer(), optimizer()
    for steps in (first, second, first, second):
        steps.step()
    gathers.begin(lambda *step: posted.append(step))
    gathers.add(answer(3))
    for steps in (first, second, first, second):
        steps.step()
    gathers.close()
    assert lengths(posted) == [(0, []), (1, []), (2, [3]), (3, [])]


def test_a_step_that_the_optimizer_leaves_out_is_told_apart_where_the_trainer_says_that_the_next_begins(
    gathers: MicroBatches, posted: list[Any]
) -> None:
    """Two optimizers share the model; the gradients of the second and the fourth step are not finite."""
    first, second = optimizer(), optimizer()
    for given, finite in ((2, True), (3, False), (4, True), (None, False), (5, True), (None, True), (6, True)):
        gathers.next_step()
        if given is not None:
            gathers.add(answer(given))
        for steps in (first, second) if finite else ():
            steps.step()
    assert lengths(posted) == [(0, [2]), (1, [3]), (2, [4]), (3, []), (4, [5]), (5, []), (6, [6])]


def test_a_checkpoint_that_is_loaded_is_no_step(posted: list[Any]) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    gathers = MicroBatches()
    model = torch.nn.Linear(2, 2)
    adam = torch.optim.AdamW(model.parameters(), lr=0.1)
    get_optimizer_state_dict(model, adam)
    assert adam.state, "torch steps an optimizer to make its state"
    gathers.begin(lambda *step: posted.append(step))
    gathers.add(answer(3))
    adam.step()
    gathers.close()
    assert lengths(posted) == [(0, [3])]


def test_a_step_that_fails_on_one_rank_is_counted_there(posted: list[Any], gathers: MicroBatches) -> None:
    steps, odd = optimizer(), answer(2)
    for given in (answer(3), odd._replace(rollout=torch.zeros(2, device="meta")), answer(4)):
        gathers.add(given)
        steps.step()
    assert lengths(posted) == [(0, [3]), (2, [4])]


def test_a_hooks_failure_is_told_once_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> int:
        raise ZeroDivisionError("of all things")

    def pauses() -> None:
        raise RunPausedError("step 3")

    with caplog.at_level(logging.WARNING):
        assert [guarded(fails), guarded(fails), guarded(lambda: 7)] == [None, None, 7]
    assert [r.getMessage() for r in caplog.records] == [
        "omni-rl: this step is not watched: ZeroDivisionError: of all things"
    ]
    with pytest.raises(RunPausedError):
        guarded(pauses)
