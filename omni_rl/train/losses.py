"""Policy-gradient losses and baselines, as pure functions.

REINFORCE with baseline: Williams 1992, "Simple statistical gradient-following algorithms for connectionist
reinforcement learning". Baselines over a group of answers to one prompt: Shao et al. 2024 (GRPO), without the division
by the standard deviation, which Liu et al. 2025 ("Understanding R1-Zero-like training") show to bias the gradient.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def policy_gradient_sum(logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """-sum_t A_t log p(token_t), float32 scalar; both float32 [T]. On policy, so without an importance ratio.

    Divided by the tokens of the whole batch, on all ranks, it is the mean that the step minimises.
    """
    return -(advantages.float() * logprobs.float()).sum()


def batch_advantages(rewards: Sequence[float]) -> NDArray[np.float64]:
    """Reward minus the batch's mean reward, float64 [N]."""
    return group_advantages(rewards, [None] * len(rewards))


def group_advantages(rewards: Sequence[float], groups: Sequence[Hashable]) -> NDArray[np.float64]:
    """Reward minus the mean reward of its group (answers to one prompt), float64 [N]."""
    values = np.asarray(rewards, dtype=np.float64)
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    advantages = values.copy()
    for indices in members.values():
        advantages[indices] -= values[indices].mean()
    return advantages
