"""GRPO, which compares the answers to one prompt with each other: Shao et al. 2024, with DAPO's amendments."""

from collections.abc import Sequence

import numpy as np

from omni_rl.api.jobs import GrpoParameters
from omni_rl.jobs.batch import Array, Batch
from omni_rl.jobs.updates import Update, learnt, objective_at
from omni_rl.train.advantages import Baseline, relative_advantages
from omni_rl.train.shares import shares
from omni_rl.train.targets import Targets


class Grpo:
    """The GRPO algorithm, with one update a step."""

    def __init__(self, parameters: GrpoParameters) -> None:
        self._parameters = parameters
        self._baseline: Baseline = (
            "leave_one_out" if parameters.leave_one_out else "normalised" if parameters.normalise else "mean"
        )
        self.answers_per_prompt = parameters.group

    def learn(self, batch: Batch, update: Update, step: int) -> dict[str, float]:
        """Make one update from the answers that teach something, and return its figures and those of the groups.

        Answers that teach nothing are left out, so that they cost no computation; if none is left, there is no update.
        """
        relative = relative_advantages(batch.rewards, batch.groups, self._baseline)
        figures = {"groups_dropped": float(relative.dropped)}
        taught = relative.kept
        if self._parameters.mask_truncated:
            taught = taught & np.array(batch.finished)
            figures["truncated"] = float(len(batch) - sum(batch.finished))
        places = np.flatnonzero(taught).tolist()
        if not places:
            return figures
        lessons = batch.take(places)
        targets = self._targets(lessons, relative.values[places])
        return figures | learnt([update(lessons.rollouts, targets, objective_at(step, self._parameters))])

    def _targets(self, lessons: Batch, advantages: Array) -> Sequence[Targets]:
        parts = shares(lessons.lengths, [True] * len(lessons), self._parameters.aggregation)
        columns = zip(parts, advantages, lessons.weights, lessons.scores, lessons.references(), strict=True)
        return [
            Targets(
                advantages=np.full(len(part), advantage),
                shares=part,
                weights=weights,
                old=score.logprobs,
                reference=reference,
            )
            for part, advantage, weights, score, reference in columns
        ]
