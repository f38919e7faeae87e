"""Defines PPO, with a value head that estimates the expected reward, and several updates a step: Schulman et al.
2017."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from omni_rl.api.jobs import PpoParameters
from omni_rl.jobs.batch import Batch
from omni_rl.jobs.updates import Update, learnt, objective_at
from omni_rl.train.advantages import generalised_advantages, whitened
from omni_rl.train.shares import shares
from omni_rl.train.targets import Targets


class Ppo:
    """The PPO algorithm. It goes through a step's answers `epochs` times and makes one update for each of `minibatches`
    parts, in an order that seed, step and epoch fix."""

    answers_per_prompt = 1
    """PPO needs no group of answers to compare: the value head gives the baseline."""

    def __init__(self, parameters: PpoParameters) -> None:
        self._parameters = parameters

    def learn(self, batch: Batch, update: Update, step: int) -> dict[str, float]:
        """Make the updates of one step by calling `update`, and return the step's figures by name."""
        parameters = self._parameters
        objective = objective_at(
            step, parameters, value_clip=parameters.value_clip, value_weight=parameters.value_weight
        )
        targets, figures = self.targets(batch)
        updates = []
        for epoch in range(parameters.epochs):
            order = np.random.default_rng([parameters.seed, step, epoch]).permutation(len(batch))
            for chosen in np.array_split(order, min(parameters.minibatches, len(batch))):
                part = shares([batch.lengths[index] for index in chosen], [True] * len(chosen), "token")
                its = [replace(targets[index], shares=share) for index, share in zip(chosen, part, strict=True)]
                updates.append(update([batch.rollouts[index] for index in chosen], its, objective))
        return figures | learnt(updates)

    def targets(self, batch: Batch) -> tuple[Sequence[Targets], dict[str, float]]:
        """Return the targets of each answer and the step's figures by name. The targets' shares, each token's part of
        the loss, are 0 until a minibatch sets them.

        The reward comes with an answer's last token. Advantages have mean 0 and variance 1 over the batch's tokens, as
        in OpenAI's baselines.
        """
        values, gains = [], []
        for score, reward, length in zip(batch.scores, batch.rewards, batch.lengths, strict=True):
            assert score.values is not None, "the trainer has a value head"
            rewards = np.zeros(length)
            rewards[-1] = reward
            values.append(score.values)
            gamma, lam = self._parameters.gamma, self._parameters.gae_lambda
            gains.append(generalised_advantages(rewards, score.values, gamma=gamma, lam=lam))
        advantages, references = whitened(gains), batch.references()
        targets = [
            Targets(
                advantages=advantages[index],
                shares=np.zeros(length),
                weights=batch.weights[index],
                old=batch.scores[index].logprobs,
                reference=references[index],
                returns=gains[index] + values[index],
                old_values=values[index],
            )
            for index, length in enumerate(batch.lengths)
        ]
        return targets, {"value": float(np.concatenate(values).mean())}
