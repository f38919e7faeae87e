"""Collects a step whose answers reach a loss function a few at a time: the step ends when the optimizer steps, or when
the trainer says that the next one begins."""

import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omni_rl.watch.guard import guarded
from omni_rl.watch.values import as_array

if TYPE_CHECKING:
    import torch
    from torch.utils.hooks import RemovableHandle


Rows: TypeAlias = list[NDArray[Any]]
PostStep: TypeAlias = Callable[[int, Rows, Rows, Rows], None]
"""Takes a step's number, and its rollout logprobs, the trainer's and the masks, an array [T] an answer each. A step may
be empty: a rank without answers has a part of it all the same."""


class AnswerTensors(NamedTuple):
    """What is known of an answer of T tokens: the engine's and the trainer's logprobs and the loss mask, tensors
    [T]."""

    rollout: "torch.Tensor"
    train: "torch.Tensor"
    mask: "torch.Tensor"


class MicroBatches:
    """Gathers each answer's logprobs and mask until an optimizer has stepped, and hands them on as one step. A trainer
    that leaves out the optimizer's step where gradients are not finite has `next_step` called at each step's start.

    Steps are counted from when this is made, which has to be before the first of them: each rank counts for itself, and
    a rank may have answers later than another, or miss a step. Tensors are held detached, on their device: nothing
    waits for the device before the optimizer has stepped.
    """

    def __init__(self) -> None:
        """Start to count steps. Their answers are gathered after `begin`."""
        self._post: PostStep | None = None
        self._answers: dict[int, AnswerTensors] = {}
        self._optimizer: int | None = None
        self._ended = 0
        self._started = False
        self._hook: RemovableHandle | None = None
        # A trainer has imported torch when it loads its loss; elsewhere a module that makes one of these stays light.
        if "torch" in sys.modules:
            self._count()

    @property
    def begun(self) -> bool:
        return self._post is not None

    def begin(self, post: PostStep) -> None:
        """Hand every further step to `post`, after those that ended before this: they had no answers here, and other
        ranks' parts of them may be waited for."""
        if self._hook is None:
            self._count()
        for number in range(self._ended):
            post(number, [], [], [])
        self._post = post

    def add(self, answer: AnswerTensors) -> None:
        """Take an answer, unless it was taken already: a loss that is computed again for its gradient comes twice."""
        self._answers.setdefault(id(answer.rollout), answer._replace(train=answer.train.detach()))

    def next_step(self) -> None:
        """Begin a step, on every rank: the one before it ends, if no optimizer has stepped in it."""
        if self._started:
            self._end()
        self._started = True

    def close(self) -> None:
        """Gather no further step."""
        if self._hook is not None:
            self._hook.remove()

    def _count(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        # No framework tells a loss function which step it is in, and every one ends a step with this call.
        self._hook = register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        # A model may be trained by several optimizers, one after the other: the first of them ends the step, and is the
        # one that ends a step without answers.
        if self._answers or (self._optimizer is None and _learns(optimizer)):
            self._optimizer = id(optimizer)
        elif id(optimizer) != self._optimizer:
            return
        self._end()

    def _end(self) -> None:
        self._started = False
        answers, self._answers = list(self._answers.values()), {}
        # Counted before anything that may fail on this rank alone.
        number, self._ended = self._ended, self._ended + 1
        if (post := self._post) is not None:
            guarded(lambda: post(number, *(on_host([answer[n] for answer in answers]) for n in range(3))))


def _learns(optimizer: Any) -> bool:
    """Return whether an optimizer has a learning rate other than 0. Before it loads a checkpoint,
    torch.distributed.checkpoint has each optimizer step once with a rate of 0, to make the state that it loads into:
    that is no step of the run."""
    return any(group.get("lr") != 0 for group in optimizer.param_groups)


def on_host(rows: Sequence["torch.Tensor"]) -> list[NDArray[Any]]:
    """Return rows of their own lengths as arrays; a device is waited for once, not once a row."""
    import torch

    if not rows:
        return []
    return np.split(as_array(torch.cat(list(rows))), list(accumulate(len(row) for row in rows))[:-1])
