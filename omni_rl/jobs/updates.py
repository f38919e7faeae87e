"""Updates as an algorithm sees them, and what each is asked to minimise."""

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
    """One optimiser step."""

    def __call__(self, rollouts: Sequence[Rollout], targets: Sequence[Targets], objective: Objective) -> StepStats: ...


class Algorithm(Protocol):
    """What a step does with its answers."""

    def learn(self, batch: Batch, update: Update, step: int) -> dict[str, float]: ...


def objective_at(step: int, parameters: PolicyGradientParameters, **of_algorithm: float) -> Objective:
    """What the updates of `step` minimise: what all algorithms share, and some fields of the algorithm's own."""
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
    """Figures of a step's updates: their means; tokens are those of all."""
    names = [name for name in vars(updates[0]) if name != "tokens"]
    figures = {name: float(np.mean([getattr(stats, name) for stats in updates])) for name in names}
    return figures | {"learnt_tokens": float(sum(stats.tokens for stats in updates))}
