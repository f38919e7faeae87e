"""Computes the advantages of GRPO and PPO, in pure functions and float64."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Baseline = Literal["normalised", "mean", "leave_one_out"]

# Keeps the division finite where rewards hardly differ; the value is TRL's.
STD_EPSILON = 1e-4
WHITENING_EPSILON = 1e-8  # the value in OpenAI's baselines


@dataclass(frozen=True)
class GroupAdvantages:
    """The advantages of N answers: `values` float64 [N]. `kept` bool [N] is False for the answers of groups whose
    rewards are all equal, and `dropped` is the number of these groups."""

    values: Array
    kept: NDArray[np.bool_]
    dropped: int


def group_advantages(rewards: Sequence[float], groups: Sequence[Hashable]) -> Array:
    """Return each reward minus the mean reward of its group (the answers to one prompt), float64 [N].

    This is REINFORCE with a baseline (Williams 1992), taken over a group as in Shao et al. 2024 (GRPO), but without the
    division by the standard deviation, which Liu et al. 2025 ("Understanding R1-Zero-like training") show to bias the
    gradient.
    """
    values = np.asarray(rewards, dtype=np.float64)
    advantages = values.copy()
    for indices in members_of(groups).values():
        advantages[indices] -= values[indices].mean()
    return advantages


def members_of(groups: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Return the indices of each group's members, with the groups in order of first appearance."""
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return members


def relative_advantages(rewards: Sequence[float], groups: Sequence[Hashable], baseline: Baseline) -> GroupAdvantages:
    """Return each reward relative to the rewards of the other answers to the same prompt.

    `normalised` is (r - mean) / (std + 1e-4) with the sample's std, Shao et al. 2024 (GRPO). `mean` is the same without
    the division, Liu et al. 2025 (Dr. GRPO). `leave_one_out` is r less the mean of the others, Ahmadian et al. 2024
    (RLOO). A group of equal rewards, such as a group of one, teaches nothing and is dropped: Yu et al. 2025 (DAPO).
    """
    centred = group_advantages(rewards, groups)
    raw = np.asarray(rewards, dtype=np.float64)
    values = np.zeros_like(centred)
    kept = np.zeros(len(raw), dtype=np.bool_)
    dropped = 0
    for indices in members_of(groups).values():
        if np.ptp(raw[indices]) == 0:
            dropped += 1
            continue
        kept[indices] = True
        scale = 1.0
        if baseline == "normalised":
            scale = 1 / (raw[indices].std(ddof=1) + STD_EPSILON)
        elif baseline == "leave_one_out":
            scale = len(indices) / (len(indices) - 1)
        values[indices] = centred[indices] * scale
    return GroupAdvantages(values=values, kept=kept, dropped=dropped)


def generalised_advantages(rewards: Array, values: Array, *, gamma: float, lam: float) -> Array:
    """Return the generalised advantage estimates (GAE) of one finished answer, float64 [T]: Schulman et al. 2016,
    equation 16.

    `rewards` and `values` are float64 [T]; `values[t]` is the value of the state in which token t was chosen. The state
    after the last token is worth 0. The returns that a value head learns are the advantages plus `values`.
    """
    delta = rewards + gamma * np.append(values[1:], 0.0) - values
    advantages = np.empty_like(delta)
    running = 0.0
    for t in range(len(delta) - 1, -1, -1):
        running = delta[t] + gamma * lam * running
        advantages[t] = running
    return advantages


def whitened(advantages: Sequence[Array]) -> list[Array]:
    """Return the advantages scaled to mean 0 and variance 1 over all tokens; each array is that of an answer."""
    everything = np.concatenate(advantages)
    mean, scale = everything.mean(), 1 / (everything.std() + WHITENING_EPSILON)
    return [(each - mean) * scale for each in advantages]
