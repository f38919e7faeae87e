"""Losses of updates that part from the policy that sampled, per token: GRPO, PPO and their reference KL."""

from typing import Literal

import torch

Aggregation = Literal["token", "sequence"]


def clipped_surrogate(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, *, low: float, high: float
) -> torch.Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A), float32 [T], r = exp(logprobs - old).

    Schulman et al. 2017 (PPO), equation 7; `high` above `low` is clip-higher, Yu et al. 2025 (DAPO), equation 10.
    """
    ratio = torch.exp(logprobs.float() - old.float())
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def reference_kl(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """k3, exp(q - p) - 1 - (q - p) with q the reference's, float32 [T]: Schulman 2020, "Approximating KL"."""
    difference = reference.float() - logprobs.float()
    return torch.expm1(difference) - difference


def clipped_value_loss(values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, *, clip: float) -> torch.Tensor:
    """max((v - R)², (clip(v, old ± clip) - R)²) / 2, float32 [T]: as in OpenAI's baselines, `ppo2/model.py`."""
    held = torch.clamp(values, old - clip, old + clip)
    return 0.5 * torch.maximum((values - returns).square(), (held - returns).square())


def aggregate(losses: torch.Tensor, lengths: list[int], included: list[bool], how: Aggregation) -> torch.Tensor:
    """Mean of token losses [T] over the sequences of `lengths` that are `included`; 0 where none is.

    `token`: every token weighs the same (DAPO). `sequence`: the mean of the sequences' means (GRPO). A truncated
    answer is not `included` under DAPO's over-long filtering.
    """
    parts = [part for part, use in zip(torch.split(losses, lengths), included, strict=True) if use and len(part)]
    if not parts:
        return losses.sum() * 0.0
    if how == "token":
        return torch.cat(parts).mean()
    return torch.stack([part.mean() for part in parts]).mean()
