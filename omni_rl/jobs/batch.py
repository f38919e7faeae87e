"""Defines the batch: the answers of a step, with all that is known of them when the update begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """The answers of a step that have a reward, in order.

    `groups` names the prompt of each answer. `weights` has float64 [T] for each: the weights of its tokens, which
    correct for the mismatch of the policies. `refer` returns the reference policy's logprobs, float64 [T] for each of
    the answers it is given, which are only those that are learnt from; it is None if the objective has no KL term.
    """

    rollouts: Sequence[Rollout]
    scores: Sequence[Score]
    rewards: Sequence[float]
    groups: Sequence[str]
    weights: Sequence[Array]
    refer: Callable[[Sequence[Rollout]], Sequence[Array]] | None = None

    def __len__(self) -> int:
        return len(self.rollouts)

    @property
    def lengths(self) -> list[int]:
        return [len(rollout.ids) for rollout in self.rollouts]

    @property
    def finished(self) -> list[bool]:
        """Whether each answer ended by itself; False where `max_tokens` cut it off."""
        return [rollout.finish_reason != "length" for rollout in self.rollouts]

    def take(self, places: Sequence[int]) -> "Batch":
        """Return a batch of the answers at these places, in the order given."""
        return replace(
            self,
            rollouts=[self.rollouts[place] for place in places],
            scores=[self.scores[place] for place in places],
            rewards=[self.rewards[place] for place in places],
            groups=[self.groups[place] for place in places],
            weights=[self.weights[place] for place in places],
        )

    def references(self) -> Sequence[Array | None]:
        """Return the reference policy's logprobs of each answer, float64 [T], or None for each without a reference."""
        return [None] * len(self) if self.refer is None else self.refer(self.rollouts)
