"""Defines the trainer's answers. Shapes: P prompt tokens, T sampled tokens, L MoE layers, K experts per token."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Score:
    """The trainer's view of one rollout.

    `logprobs`, float64 [T], are at the rollout's temperature. `experts`, int16 [P + T - 1, L, K], are the router's
    choices, and `margins`, float32 [P + T - 1, L], the gaps between the last chosen and the first refused biased score.
    `digests` are of the media tensors that the model used, one dict a media item in the order of the prompt's items.
    `version` is the version of the weights that scored. `kept` has one entry a media item: bool [tubelets, tokens
    each], the tokens of a pruned video that the trainer itself would keep (it scores those that the engine kept), or
    None. `values`, float64 [T], are what the value head, if there is one, expects where each token is chosen.
    `sequence` is the digest that `Rollout` explains, of what the trainer ran.
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
    """The statistics of one optimiser step: the `loss`, the `grad_norm` before clipping, and the number of `tokens`
    that took part.

    The others are means over those tokens: `clipped` is the share of ratios that the clip held, `kl` is k3 against the
    reference, and `value_loss` is the value head's.
    """

    loss: float
    grad_norm: float
    tokens: int
    clipped: float = 0.0
    kl: float = 0.0
    value_loss: float = 0.0
