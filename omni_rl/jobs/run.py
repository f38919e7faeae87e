"""What a loop needs beside the two policies: whoever judges its steps, and whoever serves what it learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from omni_rl.media.types import Prompt
from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score

V = TypeVar("V", covariant=True)
"""What a judge says of a step."""
Weights = Mapping[tuple[int, str], NDArray[np.float32]]
"""The weights of tokens, float32, by the rank that posted a sample and the sample's name."""


@dataclass(frozen=True)
class StepAnswers:
    """The answers of one step, in order: prompts as the task gave them, what both sides say of each, and rewards (None:
    dropped)."""

    prompts: Sequence[Prompt]
    rollouts: Sequence[Rollout]
    scores: Sequence[Score]
    rewards: Sequence[float | None]


class Judge(Protocol[V]):
    """Gives every step a verdict."""

    def judge(self, step: int, answers: StepAnswers, training: Mapping[str, float]) -> tuple[V, Weights | None]:
        """Judge a step; returns the verdict, and the weights that its tokens get (None: 1 each)."""

    def learnt(self, step: int, training: Mapping[str, float]) -> None:
        """Record the figures of what was learnt from a step that was judged."""


class JudgedRun(Judge[V], Protocol[V]):
    """A judge that also brings weights to the engines."""

    def sync(self, step: int) -> str:
        """Have the engines serve the trainer's weights, proven; returns the version that they serve. `step` is the one
        that was learnt from last; at the start, the number before the first."""
