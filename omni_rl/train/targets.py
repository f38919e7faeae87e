"""Defines what an update is told about each sampled token. Imports no torch.

Shapes: T sampled tokens of one answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_rl.errors import ConfigError
from omni_rl.rollout.types import Rollout

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Targets:
    """The targets of one answer; every array is float64 [T].

    `shares` is each token's share of the step's loss, by `surrogates.shares`; a share of 0 masks the token. `weights`
    apply to the policy gradient alone, which they correct for the mismatch between the policies
    (`omni_rl.consistency.corrections`). `old` has the logprobs that ratios are taken against; if it is None, these are
    the policy's own, so that every ratio is 1. `reference` has the logprobs of the policy that the KL term is taken
    against. `returns` and `old_values` are what a value head learns from; both are given, or neither is.
    """

    advantages: Array
    shares: Array
    weights: Array
    old: Array | None = None
    reference: Array | None = None
    returns: Array | None = None
    old_values: Array | None = None


def targets_of(rollouts: Sequence[Rollout], given: Sequence[float | Targets]) -> list[Targets]:
    """Return the targets of each rollout. A `Targets` stays as it is; a number is the advantage of all tokens of its
    answer, whose share of the loss is the same for all tokens of the batch.

    Raises:
        ConfigError: there is no token to learn from, or targets are too many, too few, misshapen or not finite.
    """
    if len(rollouts) != len(given):
        raise ConfigError(f"{len(rollouts)} rollouts but {len(given)} advantages; give one for each")
    total = sum(len(rollout.ids) for rollout in rollouts)
    if total == 0:
        raise ConfigError("no sampled token in the batch; nothing to learn from")
    found = []
    for rollout, target in zip(rollouts, given, strict=True):
        tokens = len(rollout.ids)
        if not isinstance(target, Targets):
            if not math.isfinite(target):
                raise ConfigError(f"the advantage of prompt {rollout.prompt.id!r} is {target}; it must be finite")
            target = Targets(np.full(tokens, float(target)), np.full(tokens, 1 / total), np.ones(tokens))
        for name, values in vars(target).items():
            if values is not None and (values.shape != (tokens,) or not np.isfinite(values).all()):
                raise ConfigError(f"{name} of prompt {rollout.prompt.id!r} must be {tokens} finite numbers: {values}")
        found.append(target)
    return found
