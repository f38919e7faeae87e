"""Scores both policies now, on the probe and on other answers: how far apart each replica is from the trainer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from omni_rl.consistency.attribution.case import Case, found_in
from omni_rl.consistency.attribution.parting import apart
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.rollout import diagnosis
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.types import Rescore, Rollout
from omni_rl.train import pairing
from omni_rl.train.evidence import posted_step
from omni_rl.train.trainer import Trainer
from omni_rl.train.types import Score


@dataclass(frozen=True)
class Now:
    """The scores of `answers` by the trainer and by each replica's prefill, at temperature 1."""

    answers: Sequence[Rollout]
    scores: Sequence[Score]
    engines: Sequence[Sequence[Rescore]]

    @classmethod
    def of(cls, answers: Sequence[Rollout], rollouts: Sequence[RolloutHandle], trainer: Trainer) -> "Now":
        """Have every answer scored alone, with cold caches."""
        return cls(answers, trainer.score(answers), [handle.check(answers) for handle in rollouts])

    @property
    def by_replica(self) -> list[list[SampleRecord]]:
        return [pairing.train_against_prefill(self.answers, self.scores, engine) for engine in self.engines]

    def case(self, yardstick: Yardstick, bands: Bands) -> Case:
        """Return the records of the replica that is furthest apart, as the search for a cause takes a step."""
        records = max(self.by_replica, key=lambda each: apart(each, bands))
        columns = StepColumns.of(records)
        step = posted_step(columns, self.answers, self.scores)
        known = found_in(columns, step, yardstick)
        return Case.of(step, records, known)


def sampled_now(
    answers: Sequence[Rollout], rollouts: Sequence[RolloutHandle], trainer: Trainer
) -> list[list[SampleRecord]]:
    """Return each replica's new answers to the same prompts, as a step would have them."""
    found = []
    for handle in rollouts:
        again = handle.between_steps(partial(diagnosis.sample_again, answers=answers))
        found.append(pairing.train_against_decode(again, trainer.score(again)))
    return found
