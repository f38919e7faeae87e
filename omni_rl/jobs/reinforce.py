"""REINFORCE with the mean reward of a group as its baseline: Williams 1992."""

from dataclasses import replace

from omni_rl.jobs.batch import Batch
from omni_rl.jobs.updates import Update, learnt
from omni_rl.train.advantages import group_advantages
from omni_rl.train.settings import PLAIN
from omni_rl.train.targets import targets_of


class Reinforce:
    """The REINFORCE algorithm, with one update a step at the trainer's own learning rate."""

    def learn(self, batch: Batch, update: Update, step: int) -> dict[str, float]:
        advantages = group_advantages(batch.rewards, batch.groups).tolist()
        targets = [
            replace(target, weights=weights)
            for target, weights in zip(targets_of(batch.rollouts, advantages), batch.weights, strict=True)
        ]
        return learnt([update(batch.rollouts, targets, PLAIN)])
