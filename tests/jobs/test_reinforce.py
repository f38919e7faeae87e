"""REINFORCE: each answer's reward against the mean of its group, over all tokens alike."""

from collections.abc import Sequence

import numpy as np
import pytest

from omni_rl.jobs.batch import Batch
from omni_rl.jobs.reinforce import Reinforce
from omni_rl.media.types import RenderedPrompt
from omni_rl.rollout.types import Rollout
from omni_rl.train.settings import Objective
from omni_rl.train.targets import Targets
from omni_rl.train.types import StepStats

TOKENS = (2, 3, 1)


def test_one_update_teaches_each_answer_its_reward_less_its_groups_mean() -> None:
    taught: list[tuple[Sequence[Targets], Objective]] = []

    def update(rollouts: Sequence[Rollout], targets: Sequence[Targets], objective: Objective) -> StepStats:
        taught.append((targets, objective))
        return StepStats(loss=0.5, grad_norm=2.0, tokens=sum(TOKENS))

    rollouts = [
        Rollout(RenderedPrompt(str(n), "text", np.arange(2)), np.arange(n), np.zeros(n), 1.0, (), (), None, "stop")
        for n in TOKENS
    ]
    weights = [np.full(n, 1.0 + n) for n in TOKENS]
    batch = Batch(rollouts, [], [1.0, 0.0, 3.0], ["a", "a", "b"], weights)
    figures = Reinforce().learn(batch, update, 0)
    ((targets, objective),) = taught
    assert [target.advantages.tolist() for target in targets] == [[0.5] * 2, [-0.5] * 3, [0.0]]
    assert [target.weights.tolist() for target in targets] == [weight.tolist() for weight in weights]
    assert sum(target.shares.sum() for target in targets) == pytest.approx(1.0)
    assert objective.learning_rate is None
    assert (figures["loss"], figures["grad_norm"], figures["learnt_tokens"]) == (0.5, 2.0, sum(TOKENS))
