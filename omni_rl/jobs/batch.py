"""What a step has learnt about its answers when the update begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """Answers that have a reward, in order; `groups` names the prompt of each, `weights` float64 [T] its tokens' ones
    that correct for the mismatch. `refer` gives the reference's logprobs, float64 [T] each, if the objective holds on
    to it: it is asked for those alone that are learnt from."""

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
        """Whether each answer came to its end by itself."""
        return [rollout.finish_reason != "length" for rollout in self.rollouts]

    def take(self, places: Sequence[int]) -> "Batch":
        """Some of the answers, in the order given."""
        return replace(
            self,
            rollouts=[self.rollouts[place] for place in places],
            scores=[self.scores[place] for place in places],
            rewards=[self.rewards[place] for place in places],
            groups=[self.groups[place] for place in places],
            weights=[self.weights[place] for place in places],
        )

    def references(self) -> Sequence[Array | None]:
        """Of each answer."""
        return [None] * len(self) if self.refer is None else self.refer(self.rollouts)
