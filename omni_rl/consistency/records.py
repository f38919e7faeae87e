"""One sequence as both policies saw it, in plain arrays.

Shapes: P prompt tokens, T sampled tokens, L MoE layers, K experts per token.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_rl.once import once


@dataclass(frozen=True)
class SampleRecord:
    """Logprobs of the same sampled ids by rollout and trainer, at the same temperature.

    `rollout_logprobs`, `train_logprobs` float64 [T]. The router's choices `rollout_experts`, `train_experts` int16
    [P + T - 1, L, K] and the trainer's `margins` float32 [P + T - 1, L] (gap between the last chosen and the first
    refused score) are None together where the model has no router or its choices were not recorded; an expert below 0
    stands for a choice that is not known.
    """

    sample: str
    kind: str
    prompt_tokens: int
    rollout_logprobs: NDArray[np.float64]
    train_logprobs: NDArray[np.float64]
    rollout_experts: NDArray[np.int16] | None = None
    train_experts: NDArray[np.int16] | None = None
    margins: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.rollout_logprobs.shape != self.train_logprobs.shape or self.rollout_logprobs.ndim != 1:
            raise ValueError(
                f"sample {self.sample}: {self.rollout_logprobs.shape} rollout logprobs against "
                f"{self.train_logprobs.shape} of the trainer; both must be one value a sampled token"
            )
        if self.rollout_experts is None or self.train_experts is None or self.margins is None:
            return
        positions = self.prompt_tokens + len(self.rollout_logprobs) - 1
        if not (len(self.rollout_experts) == len(self.train_experts) == len(self.margins) == positions):
            raise ValueError(
                f"sample {self.sample}: router choices for {len(self.rollout_experts)} (rollout) and "
                f"{len(self.train_experts)} (trainer) positions, margins for {len(self.margins)}; expected {positions}"
            )

    @once
    def differing_choices(self) -> NDArray[np.bool_] | None:
        """Where a layer is known to have chosen another set of experts, bool [P + T - 1, L]; None without choices."""
        if self.rollout_experts is None or self.train_experts is None:
            return None
        return differing(self.rollout_experts, self.train_experts)


def differing(rollout: NDArray[np.int16], train: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return where two choices of K experts each, [..., K], are known to be different sets, bool [...]."""
    result: NDArray[np.bool_] = np.logical_or.reduce(rollout != train, axis=-1)
    ours, theirs = rollout[result], train[result]
    if len(ours):  # another order is not another set
        ours.sort(axis=-1)
        theirs.sort(axis=-1)
        known = (ours[:, 0] >= 0) & (theirs[:, 0] >= 0)
        result[result] = known & np.logical_or.reduce(ours != theirs, axis=-1)
    return result
