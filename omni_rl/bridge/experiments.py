"""The search's experiments on the live policies: engines through their handles, the trainer through its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.attribution.evidence import Audit, mean_abs
from omni_rl.consistency.attribution.legs import Legs, Reference
from omni_rl.consistency.attribution.search import Experiments
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.localisation import ModuleDifference, profile
from omni_rl.consistency.records import SampleRecord
from omni_rl.rollout import diagnosis
from omni_rl.rollout.actor import RolloutHandle
from omni_rl.rollout.types import Rollout
from omni_rl.sync.journal import Journal
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slabs import SlabPair
from omni_rl.train import hooks, pairing
from omni_rl.train.types import Score
from omni_rl.train.worker import TrainWorker

T = TypeVar("T")


class Trainer(Protocol):
    """Of `omni_rl.train.group.TrainerGroup`, or a handle on it."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]: ...
    def on_ranks(self, run: Callable[[TrainWorker], T]) -> list[T]: ...


@dataclass(frozen=True)
class LiveExperiments:
    """On `answers`, which the engines sampled or which are the probe's; the trainer holds the same weights.

    `slabs`: what the engines are to hold, and where the weights before it may still be found.
    """

    rollouts: Sequence[RolloutHandle]
    trainer: Trainer
    slabs: tuple[SlabRef, SlabRef | None]
    answers: Sequence[Rollout]
    bands: Bands

    def chosen(self, *, legs: bool, reference: bool, localise: bool) -> Experiments:
        """Those that are asked for; weights are read back, and temperatures tried, in any case."""
        return Experiments(
            self.audit,
            self.rescore,
            self.legs if legs else None,
            self.reference if reference else None,
            self.localise if localise else None,
        )

    def audit(self) -> list[Audit]:
        slab, before = self.slabs
        return [
            handle.between_steps(
                partial(
                    diagnosis.audit,
                    replica=handle.name,
                    slab=handle.local(slab),
                    before=None if before is None else handle.local(before),
                )
            )
            for handle in self.rollouts
        ]

    def rescore(self, temperature: float) -> list[NDArray[np.float64]]:
        at = [replace(answer, temperature=temperature) for answer in self.answers]
        return [score.logprobs for score in self.trainer.score(at)]

    def legs(self) -> Legs:
        """Of the replica that disagrees most with itself: a cache, say, is stale where an answer was sampled."""
        each = [self._legs_of(handle) for handle in self.rollouts]
        return max(each, key=lambda legs: np.nan_to_num(_apart(legs.batch_vs_alone), nan=np.inf))

    def _legs_of(self, handle: RolloutHandle) -> Legs:
        found = handle.between_steps(partial(diagnosis.legs, given=self.answers))
        scores = self.trainer.score(found.answers)
        decode = pairing.decode_as_leg(found.answers)
        return Legs(
            pairing.train_against_prefill(found.answers, scores, found.alone),
            pairing.engine_against_itself(found.answers, decode, found.batch, scores),
            pairing.engine_against_itself(found.answers, found.batch, found.alone, scores),
            pairing.engine_against_itself(found.answers, found.batch, found.cold, scores),
        )

    def reference(self) -> Reference:
        """Of the kind of prompt in which a side is furthest away."""
        answers = [replace(answer, temperature=1.0) for answer in self.answers]
        exact = self.trainer.on_ranks(partial(hooks.reference, rollouts=answers))[0]
        train = [score.logprobs for score in self.trainer.score(answers)]
        engine = [score.logprobs for score in self.rollouts[0].check(answers)]
        kinds = dict.fromkeys(answer.prompt.kind for answer in answers)
        found = []
        for kind in kinds:
            of_kind = [number for number, answer in enumerate(answers) if answer.prompt.kind == kind]
            found.append(Reference(_distance(train, exact, of_kind), _distance(engine, exact, of_kind), kind))
        return max(found, key=lambda far: np.nan_to_num(max(far.train, far.engine), nan=np.inf))

    def localise(self, sample: str) -> tuple[str, list[ModuleDifference]]:
        """On the answer to the prompt of that name; without it on the answer that is furthest apart now."""
        answer = next((answer for answer in self.answers if answer.prompt.id == sample), None) or self._furthest()
        return answer.prompt.id, modules(self.rollouts[0], self.trainer, answer, self.bands)

    def _furthest(self) -> Rollout:
        scores, engine = self.trainer.score(self.answers), self.rollouts[0].check(self.answers)
        apart = [mean_abs(score.logprobs - other.logprobs) for score, other in zip(scores, engine, strict=True)]
        return self.answers[int(np.argmax(np.nan_to_num(apart, nan=np.inf)))]


def modules(engine: RolloutHandle, trainer: Trainer, answer: Rollout, bands: Bands) -> list[ModuleDifference]:
    """How far apart the outputs of each module lie while both sides score one answer."""
    ours = engine.between_steps(partial(diagnosis.activations, rollout=answer))
    theirs = trainer.on_ranks(partial(hooks.activations, rollout=answer))[0]
    return profile(ours, theirs, bands)


def _apart(leg: Sequence[SampleRecord]) -> float:
    """Of the sample that is furthest apart."""
    return max(mean_abs(record.train_logprobs - record.rollout_logprobs) for record in leg)


def _distance(
    side: Sequence[NDArray[np.float64]], exact: Sequence[NDArray[np.float64]], numbers: Sequence[int]
) -> float:
    return mean_abs(np.concatenate([side[n] - exact[n] for n in numbers]))


def served_slabs(journal: Journal, slabs: SlabPair) -> tuple[SlabRef, SlabRef | None]:
    """What is committed, and the weights before it, if the other slab still has them."""
    served = journal.committed()
    assert served is not None, "the run's syncs were opened"
    idle = slabs.idle(served)
    manifest = slabs.at(idle).manifest
    return served, None if manifest is None else SlabRef(idle, str(manifest.version))
