"""What the trainer answers. Shapes: P prompt tokens, T sampled tokens, L MoE layers, K experts per token."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Score:
    """The trainer's view of one rollout.

    `logprobs` float64 [T], at the rollout's temperature. `experts` int16 [P + T - 1, L, K] and `margins` float32
    [P + T - 1, L]: the router's choices and the gap between the last chosen and the first refused biased score.
    `digests`: of the media tensors the model used, one dict an item in the order of the prompt's items. `version`
    of the weights that scored. `kept`, one entry a media item: bool [tubelets, tokens each], which tokens of a pruned
    video the trainer itself would keep (it scores those that the engine kept), or None. `values` float64 [T]: what the
    value head, if there is one, expects where each token is chosen. `sequence`: as in
    `Rollout`, of what the trainer ran.
    """

    logprobs: NDArray[np.float64]
    experts: NDArray[np.int16] | None
    margins: NDArray[np.float32] | None
    digests: tuple[dict[str, str], ...]
    version: str
    kept: tuple[NDArray[np.bool_] | None, ...] = ()
    values: NDArray[np.float64] | None = None
    sequence: str = ""


@dataclass(frozen=True)
class StepStats:
    """One optimiser step: `loss`, `grad_norm` before clipping, `tokens` that took part.

    Means over those tokens: `clipped`, whether a ratio was held by its clip; `kl`, k3 against the reference;
    `value_loss`.
    """

    loss: float
    grad_norm: float
    tokens: int
    clipped: float = 0.0
    kl: float = 0.0
    value_loss: float = 0.0
