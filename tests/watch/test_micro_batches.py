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
    found = MicroBatches(lambda *rows: posted.append(rows))
    yield found
    found.close()


def answer(length: int) -> AnswerTensors:
    row = torch.arange(length, dtype=torch.bfloat16)
    return AnswerTensors(row, row.clone().requires_grad_(), torch.ones(length, dtype=torch.bool))


def test_a_step_ends_when_the_first_optimizer_steps(gathers: MicroBatches, posted: list[Any]) -> None:
    first, second = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1) for _ in range(2))
    first.step()
    assert posted == []  # nothing was begun
    again = answer(2)
    for given in (answer(3), again, again):
        gathers.add(given)
    for optimizer in (second, first, second):
        optimizer.step()
    gathers.add(answer(4))
    third = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # made anew in the midst of the run
    for optimizer in (third, second, third):
        optimizer.step()
    assert [[len(row) for row in rows[0]] for rows in posted] == [[3, 2], [], [4], []]
    rollout, train, mask = posted[0]
    assert rollout[0].tolist() == train[0].tolist() == [0.0, 1.0, 2.0]
    assert mask[1].dtype == np.bool_


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
