"""Measures how often the trainer's routers would choose other experts than the engine did."""

from collections.abc import Sequence

import numpy as np

from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score


def flip_rates(name: str, rollouts: Sequence[Rollout], scores: Sequence[Score]) -> dict[str, float]:
    """Return `flips_LAYER_NAME` for each MoE layer: the share of positions at which trainer and engine choose different
    sets of experts. The result is empty if no choices were recorded."""
    differs = [
        (np.sort(rollout.experts, -1) != np.sort(score.experts, -1)).any(-1)
        for rollout, score in zip(rollouts, scores, strict=True)
        if rollout.experts is not None and score.experts is not None
    ]
    if not differs:
        return {}
    return {f"flips_{layer}_{name}": float(rate) for layer, rate in enumerate(np.concatenate(differs).mean(0))}
