"""GRPO: what the answers to one prompt teach about each other. Shao et al. 2024, with DAPO's amendments."""

from collections.abc import Sequence

import numpy as np

from omni_rl.api.jobs import GrpoParameters
from omni_rl.jobs.batch import Batch
from omni_rl.jobs.updates import Update, learnt, objective_at
from omni_rl.train.advantages import Baseline, relative_advantages
from omni_rl.train.surrogates import shares
from omni_rl.train.targets import Targets


class Grpo:
    """One update a step."""

    def __init__(self, parameters: GrpoParameters) -> None:
        self._parameters = parameters
        self._baseline: Baseline = (
            "leave_one_out" if parameters.leave_one_out else "normalised" if parameters.normalise else "mean"
        )
        self.answers_per_prompt = parameters.group

    def learn(self, batch: Batch, update: Update, step: int) -> dict[str, float]:
        """Figures of the update; without one where every group's rewards are equal."""
        targets, figures = self.targets(batch)
        if not any(target.shares.any() for target in targets):
            return figures
        return figures | learnt([update(batch.rollouts, targets, objective_at(step, self._parameters))])

    def targets(self, batch: Batch) -> tuple[Sequence[Targets], dict[str, float]]:
        relative = relative_advantages(batch.rewards, batch.groups, self._baseline)
        taught = relative.kept.tolist()
        if self._parameters.mask_truncated:
            taught = [kept and finished for kept, finished in zip(taught, batch.finished, strict=True)]
        parts = shares(batch.lengths, taught, self._parameters.aggregation)
        targets = [
            Targets(
                advantages=np.full(len(part), advantage),
                shares=part,
                weights=batch.weights[index],
                old=batch.scores[index].logprobs,
                reference=batch.reference(index),
            )
            for index, (part, advantage) in enumerate(zip(parts, relative.values, strict=True))
        ]
        figures = {"groups_dropped": float(relative.dropped)}
        if self._parameters.mask_truncated:
            figures["truncated"] = float(len(batch) - sum(batch.finished))
        return targets, figures
