"""Computes the losses of GRPO and PPO and their reference KL, per token, for a policy that has moved away from the one
that sampled."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

Aggregation = Literal["token", "sequence"]


def clipped_surrogate(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, *, low: float, high: float
) -> torch.Tensor:
    """Return -min(r A, clip(r, 1 - low, 1 + high) A), float32 [T], with r = exp(logprobs - old) and A the advantages.

    This is Schulman et al. 2017 (PPO), equation 7; `high` above `low` is clip-higher, Yu et al. 2025 (DAPO),
    equation 10.
    """
    ratio = torch.exp(logprobs.float() - old.float())
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def reference_kl(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the k3 estimate of the KL to the reference, float32 [T]: exp(q - p) - 1 - (q - p), with q the reference's
    logprobs and p the policy's. Schulman 2020, "Approximating KL"."""
    difference = reference.float() - logprobs.float()
    return torch.expm1(difference) - difference


def clipped_value_loss(values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, *, clip: float) -> torch.Tensor:
    """Return max((v - R)², (clip(v, old ± clip) - R)²) / 2, float32 [T], as in OpenAI's baselines, `ppo2/model.py`."""
    held = torch.clamp(values, old - clip, old + clip)
    return 0.5 * torch.maximum((values - returns).square(), (held - returns).square())


def shares(lengths: Sequence[int], included: Sequence[bool], how: Aggregation) -> list[NDArray[np.float64]]:
    """Return each token's share of a step's loss, float64 [T] for each of the answers of `lengths`; the shares add up
    to 1.

    With `token` every token weighs the same (DAPO); with `sequence` the loss is the mean of the answers' means (GRPO).
    The tokens of an answer that is not `included` have share 0: for example a truncated one under DAPO's over-long
    filtering, or one of a group that teaches nothing.
    """
    counted = [length if use else 0 for length, use in zip(lengths, included, strict=True)]
    tokens, sequences = sum(counted), sum(length > 0 for length in counted)
    found = []
    for length, count in zip(lengths, counted, strict=True):
        share = 0.0 if not count else 1 / tokens if how == "token" else 1 / (sequences * count)
        found.append(np.full(length, share))
    return found
