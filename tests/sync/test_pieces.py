"""Tensors that are worked on in pieces, by several threads: all pieces are, and their results come in order."""

from functools import partial

import pytest
import torch

from omni_rl.sync.checksum import Checksum
from omni_rl.sync.pieces import AHEAD, PIECE_BYTES, THREADS, TensorPart, checksum_of, in_threads, take_all

MANY = 3 * AHEAD * THREADS


def test_results_of_many_tasks_come_in_their_order() -> None:
    assert list(in_threads(partial(int, number) for number in range(MANY))) == list(range(MANY))


def test_the_first_task_that_raises_ends_the_rest() -> None:
    done: list[int] = []

    def task(number: int) -> None:
        if number == 1:
            raise ValueError("the second")
        done.append(number)

    with pytest.raises(ValueError, match="the second"):
        list(in_threads(partial(task, number) for number in range(MANY)))
    assert len(done) < MANY - 1


def test_a_tensor_of_several_pieces_has_the_checksum_of_the_whole() -> None:
    values = torch.arange(PIECE_BYTES // 4 + 5, dtype=torch.float32)
    small = torch.arange(7, dtype=torch.float32)
    parts = [TensorPart("large", 0, values, torch.float32), TensorPart("small", 0, small, torch.float32)]
    found = {name: str(checksum) for name, checksum in take_all(parts, checksum_of).items()}
    assert found == {"large": str(Checksum.of_tensor(values)), "small": str(Checksum.of_tensor(small))}
