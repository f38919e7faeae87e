"""Computes the losses of GRPO and PPO and their reference KL, per token, for a policy that has moved away from the one
that sampled."""

import torch


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
