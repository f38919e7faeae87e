"""Defines algorithms and the updates that they make, and what an update minimises."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from omni_rl.api.jobs import PolicyGradientParameters
from omni_rl.jobs.batch import Batch
from omni_rl.rollout.types import Rollout
from omni_rl.train.settings import Objective
from omni_rl.train.targets import Targets
from omni_rl.train.types import StepStats


class Update(Protocol):
    """A function that makes one optimiser step and returns its statistics."""

    def __call__(self, rollouts: Sequence[Rollout], targets: Sequence[Targets], objective: Objective) -> StepStats: ...


class Algorithm(Protocol):
    """An algorithm, which learns from a step's answers with one or more updates."""

    def learn(self, batch: Batch, update: Update, step: int) -> dict[str, float]: ...


def objective_at(step: int, parameters: PolicyGradientParameters, **of_algorithm: float) -> Objective:
    """Return what the updates of `step` minimise. `of_algorithm` has the fields that not all algorithms share."""
    risen = min(1.0, (step + 1) / (parameters.learning_rate_warmup + 1))
    left = 1 - parameters.learning_rate_decay * step / parameters.steps
    return Objective(
        learning_rate=parameters.learning_rate * risen * left,
        clip_low=parameters.clip_low,
        clip_high=parameters.clip_high,
        kl=parameters.kl,
        replay_routing=parameters.router_replay,
        **of_algorithm,
    )


def learnt(updates: Sequence[StepStats]) -> dict[str, float]:
    """Return the figures of a step's updates: the mean of each statistic, and the tokens of all updates together."""
    names = [name for name in vars(updates[0]) if name != "tokens"]
    figures = {name: float(np.mean([getattr(stats, name) for stats in updates])) for name in names}
    return figures | {"learnt_tokens": float(sum(stats.tokens for stats in updates))}
