"""Defines what a loop needs besides the two policies: a judge of its steps, and a way to serve its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from omni_rl.media.types import Prompt
from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score

V = TypeVar("V", covariant=True)
"""The type of a judge's verdict on a step."""
Weights = Mapping[tuple[int, str], NDArray[np.float32]]
"""The weights of each sample's tokens, float32 [T], by the rank that posted the sample and the sample's name."""


@dataclass(frozen=True)
class StepAnswers:
    """The answers of one step, in order: `prompts` as the task gave them, the engine's `rollouts`, the trainer's
    `scores`, and `rewards`, with None for an answer that was dropped."""

    prompts: Sequence[Prompt]
    rollouts: Sequence[Rollout]
    scores: Sequence[Score]
    rewards: Sequence[float | None]


class Judge(Protocol[V]):
    """A judge, which gives every step a verdict."""

    def judge(self, step: int, answers: StepAnswers, training: Mapping[str, float]) -> tuple[V, Weights | None]:
        """Judge a step, and return its verdict and the weights of its tokens; None means that each weighs 1."""

    def learnt(self, step: int, training: Mapping[str, float]) -> None:
        """Record the training figures of a step that was judged and learnt from."""


class JudgedRun(Judge[V], Protocol[V]):
    """A judge that also brings weights to the engines."""

    def sync(self, step: int) -> str:
        """Have the engines serve the trainer's weights, proven, and return the version that they serve. `step` is the
        step that was learnt from last; at the start, it is the number before the first step."""
