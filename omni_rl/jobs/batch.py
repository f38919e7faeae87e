"""What a step has learnt about its answers when the update begins."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """Answers that have a reward, in order; `groups` names the prompt of each, `weights` float64 [T] its tokens' ones
    that correct for the mismatch, `references` float64 [T] the reference's logprobs if the objective holds on to it."""

    rollouts: Sequence[Rollout]
    scores: Sequence[Score]
    rewards: Sequence[float]
    groups: Sequence[str]
    weights: Sequence[Array]
    references: Sequence[Array] | None = None

    def __len__(self) -> int:
        return len(self.rollouts)

    @property
    def lengths(self) -> list[int]:
        return [len(rollout.ids) for rollout in self.rollouts]

    @property
    def finished(self) -> list[bool]:
        """Whether each answer came to its end by itself."""
        return [rollout.finish_reason != "length" for rollout in self.rollouts]

    def reference(self, index: int) -> Array | None:
        return None if self.references is None else self.references[index]
