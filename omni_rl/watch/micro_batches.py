"""Collects a step whose answers reach a loss function a few at a time: the step ends when the optimizer steps."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omni_rl.watch.guard import guarded
from omni_rl.watch.values import as_array

if TYPE_CHECKING:
    import torch


Rows: TypeAlias = list[NDArray[Any]]


class AnswerTensors(NamedTuple):
    """What is known of an answer of T tokens: the engine's and the trainer's logprobs and the loss mask, tensors
    [T]."""

    rollout: "torch.Tensor"
    train: "torch.Tensor"
    mask: "torch.Tensor"


class MicroBatches:
    """Gathers each answer's logprobs and mask until an optimizer has stepped, and hands them on as one step.

    Tensors are held detached, on their device: nothing waits for the device before the optimizer has stepped.
    """

    def __init__(self, post: Callable[[Rows, Rows, Rows], None]) -> None:
        """Start to gather.

        `post` takes the rollout logprobs, the trainer's and the masks of a step, an array [T] an answer each. A step
        may be empty: a rank without answers has a part of it all the same.
        """
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._post = post
        self._answers: dict[int, AnswerTensors] = {}
        self._optimizer: int | None = None
        # No framework tells a loss function which step it is in, and every one ends a step with this call.
        self._hook = register_optimizer_step_post_hook(self._stepped)

    def add(self, answer: AnswerTensors) -> None:
        """Take an answer, unless it was taken already: a loss that is computed again for its gradient comes twice."""
        self._answers.setdefault(id(answer.rollout), answer._replace(train=answer.train.detach()))

    def close(self) -> None:
        """Gather no further step."""
        self._hook.remove()

    def _stepped(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        # A model may be trained by several optimizers, one after the other: the first of them ends the step, and is the
        # one that ends a step without answers.
        if self._answers:
            self._optimizer = id(optimizer)
        elif id(optimizer) != self._optimizer:
            return
        answers, self._answers = list(self._answers.values()), {}
        guarded(lambda: self._post(*(on_host([answer[n] for answer in answers]) for n in range(3))))


def on_host(rows: Sequence["torch.Tensor"]) -> list[NDArray[Any]]:
    """Return rows of their own lengths as arrays; a device is waited for once, not once a row."""
    import torch

    if not rows:
        return []
    return np.split(as_array(torch.cat(list(rows))), list(accumulate(len(row) for row in rows))[:-1])
