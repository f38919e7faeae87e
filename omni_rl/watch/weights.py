"""Computes weights of tokens for the policy gradient, in the form in which a trainer holds its logprobs."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.corrections import Correction, weights
from omni_rl.errors import RecordError
from omni_rl.watch.values import Numbers, as_array, is_tensor

Weights: TypeAlias = Any
"""float32 [B, T]: a tensor on the trainer's device, or an array."""


def token_weights(rollout: Numbers, train: Numbers, mask: Numbers | None, correction: Correction) -> Weights:
    """Return the weights of padded logprobs [B, T]: a tensor on `train`'s device where that is a tensor.

    Raises:
        RecordError: The shapes differ.
    """
    learner, sampler = as_array(train).astype(np.float64), as_array(rollout)
    counted = np.ones(learner.shape, np.bool_) if mask is None else as_array(mask).astype(np.bool_)
    if learner.ndim != 2 or not learner.shape == sampler.shape == counted.shape:
        shapes = f"{sampler.shape}, {learner.shape} and {counted.shape}"
        raise RecordError(f"weights are of logprobs [B, T] and a mask of that shape, not of {shapes}")
    d: NDArray[np.float64] = learner - sampler
    offsets = np.arange(d.shape[0] + 1) * d.shape[1]
    found = weights(np.where(counted, d, 0.0).ravel(), offsets, counted.ravel(), correction)
    shaped = found.reshape(d.shape).astype(np.float32)
    if is_tensor(train):
        import torch  # who has a tensor has it

        return torch.from_numpy(shaped).to(train.device)
    return shaped
