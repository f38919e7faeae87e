"""Runs the search's experiments on the live policies: engines through their handles, the trainer through its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.attribution.case import Case
from omni_rl.consistency.attribution.legs import Legs, Reference
from omni_rl.consistency.attribution.packing import Packing
from omni_rl.consistency.attribution.reported import Values
from omni_rl.consistency.attribution.search import Experiments
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.evidence import Audit, TrainerAudit, mean_abs
from omni_rl.consistency.localisation import ModuleDifference, profile
from omni_rl.rollout import diagnosis
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.types import Rescore, Rollout
from omni_rl.sync.journal import Journal
from omni_rl.sync.manifest import Manifest
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slabs import SlabPair
from omni_rl.sync.version import same_weights
from omni_rl.train import hooks, pairing
from omni_rl.train.trainer import Trainer
from omni_rl.train.types import Score


@dataclass(frozen=True)
class LiveExperiments:
    """Runs experiments on `answers`, which the engines sampled or which are the probe's.

    `slabs` are the weights that the engines must hold, and the slab where the weights before may still be found;
    `manifest` is that of the first of them, where it is known. `own` are the answers, by name, that are the step's and
    that both sides can compute again with the step's weights; `case` is what the step has of them.
    """

    rollouts: Sequence[RolloutHandle]
    trainer: Trainer
    slabs: tuple[SlabRef, SlabRef | None]
    answers: Sequence[Rollout]
    bands: Bands
    case: Case = field(default_factory=lambda: Case(()))
    own: Mapping[str, Rollout] = field(default_factory=dict)
    manifest: Manifest | None = None

    def chosen(self, *, legs: bool, reference: bool, localise: bool) -> Experiments:
        """Return the experiments that are asked for; weights are read back, and the trainer's scores made again, in any
        case."""
        return Experiments(
            self.audit,
            self.trainer_weights,
            self.packing,
            self.rescore if self.own else None,
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

    def trainer_weights(self) -> TrainerAudit:
        """Compare the trainer's weights with their version; the tensors that differ are named where the engines serve
        the version that the trainer reports."""
        version, held, sums = self.trainer.on_ranks(hooks.checksums)[0]
        if self.manifest is None or not same_weights(version, str(self.manifest.version)):
            return TrainerAudit(version, held)
        wrong = [entry.name for entry in self.manifest.entries if sums.get(entry.name) != entry.checksum]
        return TrainerAudit(version, held, tuple(wrong))

    def packing(self) -> Packing:
        packed = self.trainer.score(self.answers)
        alone, again = ([self.trainer.score([answer])[0] for answer in self.answers] for _ in range(2))
        return Packing(
            pairing.trainer_against_itself(self.answers, alone, packed),
            pairing.trainer_against_itself(self.answers, alone, again),
        )

    def rescore(self, temperature: float, names: Sequence[str] | None = None) -> Values:
        chosen = list(self.own) if names is None else names
        at = [replace(self.own[name], temperature=temperature) for name in chosen]
        return dict(zip(chosen, self.trainer.on_ranks(partial(hooks.logprobs, rollouts=at))[0], strict=True))

    def legs(self) -> Legs:
        """Return the legs of the replica that disagrees most with itself: a cache, say, is stale where an answer was
        sampled."""
        scores = self.trainer.score(self._plain)
        each = [self._legs_of(handle, scores) for handle in self.rollouts]
        return max(each, key=lambda legs: np.nan_to_num(_furthest(legs), nan=np.inf))

    @property
    def _plain(self) -> list[Rollout]:
        """The answers at temperature 1, which is that of an engine's prefill."""
        return [replace(answer, temperature=1.0) for answer in self.answers]

    def _legs_of(self, handle: RolloutHandle, scores: Sequence[Score]) -> Legs:
        answers = self.answers
        found = handle.between_steps(partial(diagnosis.legs, answers=answers))
        plain = [Rescore(decoded.plain, None) for decoded in found.decoded]
        tempered = {answer.prompt.id: decoded.tempered for answer, decoded in zip(answers, found.decoded, strict=True)}
        return Legs(
            pairing.train_against_prefill(answers, scores, found.alone),
            pairing.engine_against_itself(answers, plain, found.batch, scores),
            pairing.engine_against_itself(answers, found.batch, found.alone, scores),
            pairing.engine_against_itself(answers, found.batch, found.cold, scores),
            {name: values for name, values in tempered.items() if name in self.own},
        )

    def reference(self) -> Reference:
        """Return how far each side is from float32, for the kind of prompt in which a side is furthest away.

        The sides are the step's values, where its answers are at hand, else what both give now.
        """
        answers = list(self.own.values()) or self._plain
        exact = self.trainer.on_ranks(partial(hooks.reference, rollouts=answers))[0]
        by_name = self.case.cut({answer.prompt.id: each for answer, each in zip(answers, exact, strict=True)})
        train, engine = self._posted() if self.own else self._now()
        found = [
            Reference(_distance(train, by_name, names), _distance(engine, by_name, names), kind)
            for kind, names in _names_by_kind(answers).items()
        ]
        return max(found, key=lambda far: far.furthest)

    def _posted(self) -> tuple[Values, Values]:
        """Return what the step has of the trainer's side and of the engine's."""
        records = [record for record in self.case.records if record.sample in self.own]
        return (
            {record.sample: record.train_logprobs for record in records},
            {record.sample: record.rollout_logprobs for record in records},
        )

    def _now(self) -> tuple[Values, Values]:
        answers = self._plain
        scores, engine = self.trainer.score(answers), self.rollouts[0].check(answers)
        return (
            {answer.prompt.id: score.logprobs for answer, score in zip(answers, scores, strict=True)},
            {answer.prompt.id: score.logprobs for answer, score in zip(answers, engine, strict=True)},
        )

    def localise(self, sample: str) -> tuple[str, list[ModuleDifference]]:
        """Compare modules on the answer to the prompt `sample`; if there is none, on the answer that is furthest apart
        now."""
        answer = next((answer for answer in self.answers if answer.prompt.id == sample), None) or self._furthest()
        return answer.prompt.id, modules(self.rollouts[0], self.trainer, answer, self.bands)

    def _furthest(self) -> Rollout:
        train, engine = self._now()
        apart = [mean_abs(train[answer.prompt.id] - engine[answer.prompt.id]) for answer in self.answers]
        return self.answers[int(np.argmax(np.nan_to_num(apart, nan=np.inf)))]


def modules(engine: RolloutHandle, trainer: Trainer, answer: Rollout, bands: Bands) -> list[ModuleDifference]:
    """Return how far apart the outputs of each module lie while both sides score one answer."""
    ours = engine.between_steps(partial(diagnosis.activations, rollout=answer))
    theirs = trainer.on_ranks(partial(hooks.activations, rollout=answer))[0]
    return profile(ours, theirs, bands)


def _furthest(legs: Legs) -> float:
    """Return the mean difference of the sample that is furthest apart in any of the engine's own legs."""
    own = (*legs.batch_vs_alone, *legs.prefill_vs_decode)
    return max((mean_abs(record.train_logprobs - record.rollout_logprobs) for record in own), default=0.0)


def _names_by_kind(answers: Sequence[Rollout]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for answer in answers:
        found.setdefault(answer.prompt.kind, []).append(answer.prompt.id)
    return found


def _distance(side: Values, exact: Values, names: Sequence[str]) -> float:
    apart: list[NDArray[np.float64]] = [side[name] - exact[name] for name in names]
    return mean_abs(np.concatenate(apart))


def served_slabs(journal: Journal, slabs: SlabPair) -> tuple[SlabRef, SlabRef | None]:
    """Return the committed slab, and that of the weights before it, if the other slab still has them."""
    served = journal.committed()
    assert served is not None, "the run's syncs were opened"
    idle = slabs.idle(served)
    manifest = slabs.at(idle).manifest
    return served, None if manifest is None else SlabRef(idle, str(manifest.version))
