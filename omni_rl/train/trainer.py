"""Defines the trainer, whoever holds its ranks: requests are checked, dealt out over the ranks, and their answers put
together again."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omni_rl.errors import ConfigError
from omni_rl.media.slots import FeatureCounts
from omni_rl.rollout.types import Rollout
from omni_rl.sync.manifest import Manifest
from omni_rl.sync.version import WeightVersion
from omni_rl.train.plan import Plan, distribute, plan_packs, restore, sequence_length
from omni_rl.train.settings import PLAIN, Objective, TrainSettings
from omni_rl.train.targets import Targets, targets_of
from omni_rl.train.types import Score, StepStats

if TYPE_CHECKING:
    from omni_rl.train.worker import TrainWorker

T = TypeVar("T")


@dataclass(frozen=True)
class Built:
    """What a trainer was started with: the checkpoint `model`, its `settings`, the rules by which the model makes
    `features` of media, and the `addresses` of the ranks' nodes, by rank."""

    model: Path
    settings: TrainSettings
    features: FeatureCounts
    addresses: tuple[str, ...]


class Trainer(ABC):
    """A trainer, which is one policy over several ranks; `omni_rl.train.worker.TrainWorker` is a rank. Rollouts keep
    their order.

    A rank that dies, or fails inside a collective, ends the trainer: the call raises `TrainerDeadError`, and so does
    every later one.
    """

    built: Built

    @abstractmethod
    def each(self, method: str, *shares: Sequence[Any]) -> list[Any]:
        """Call `method` of every rank with its own element of every share, and return the answers by rank."""

    def score(self, rollouts: Sequence[Rollout], snapshot: str | None = None, *, replay: bool = False) -> list[Score]:
        """Return the trainer's logprobs, router choices and media digests of every answer, under its current weights or
        those of a `snapshot`. With `replay`, the experts are the ones that the engine used.

        Raises:
            ConfigError: a rollout is longer than `max_pack_tokens`, there is no snapshot of that name, or the engine
                recorded no experts to replay.
            PromptError, MediaError: a media item does not fit its slots in the prompt.
        """
        plan = self._plan(rollouts, replay)
        return restore(plan, self.each("score", distribute(plan, rollouts), *self._alike(snapshot, replay)))

    def take_snapshot(self, name: str) -> None:
        """Hold a snapshot of the current weights, to `score` with them later; `load` and `reset` leave it as it is."""
        self._all("take_snapshot", name)

    def drop_snapshot(self, name: str | None = None) -> None:
        """Drop the snapshot of that name, if there is one; without a name, drop all of them."""
        self._all("drop_snapshot", name)

    def update(
        self, rollouts: Sequence[Rollout], targets: Sequence[float | Targets], objective: Objective = PLAIN
    ) -> StepStats:
        """Make one optimiser step, and return its statistics. A target that is a number is the advantage of all tokens
        of its answer.

        Raises:
            ConfigError: there is nothing to learn from, targets are too many, too few or not finite, a rollout is too
                long, or the engine recorded no experts to replay.
            PromptError, MediaError: a media item does not fit its slots in the prompt.
            GradientError: the gradient is not finite; weights and version are as before.
        """
        found = targets_of(rollouts, targets)
        plan = self._plan(rollouts, objective.replay_routing)
        shares = distribute(plan, rollouts), distribute(plan, found)
        stats: StepStats = self.each("update", *shares, *self._alike(objective))[0]
        return stats

    def reset(self) -> None:
        """Return to the weights and the optimiser state that the trainer started with; the version's number goes on."""
        self._all("build", self.built.model, None)

    def version(self) -> WeightVersion:
        """Return the version of the current weights."""
        version: WeightVersion = self._all("version")[0]
        return version

    def fill(self, path: Path, claim: str | None = None) -> Manifest:
        """Write the current weights, as an engine takes them, into the slab at `path` on rank 0's host, seal the slab,
        and return its manifest. `claim` is the claim with which the slab was given to the trainer.

        Raises:
            SlabError: the slab is missing, too small, being written, or was given to another writer (a subclass says
                which); the trainer lives on.
        """
        addresses = self.built.addresses
        here = [address == addresses[0] for address in addresses]
        paths, claims = self._alike(path, claim)
        manifest: Manifest = self.each("fill", paths, here, claims)[0]
        return manifest

    def on_ranks(self, run: "Callable[[TrainWorker], T]") -> list[T]:
        """Call a function with every rank in the rank's own process, which has to be able to import it, and return the
        results by rank."""
        return self._all("run", run)

    def save(self, directory: Path) -> None:
        """Write a checkpoint, complete or not at all: weights that vLLM serves, optimiser state, and a record.

        Raises:
            CheckpointError: the directory exists or cannot be written; the trainer lives on.
        """
        self._all("save", Path(directory).resolve())

    def load(self, directory: Path) -> None:
        """Continue from a checkpoint with its weights, optimiser state and version number.

        Raises:
            CheckpointError: the directory is no checkpoint, or its tensors changed since it was written; the trainer
                keeps the weights it has.
        """
        path = Path(directory).resolve()
        # Two calls, between which no other driver may ask for an update; jobs hold the policies by a claim.
        record = self._all("read_record", path)[0]
        self._all("build", path, record.number)

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        return self.each(method, *self._alike(*arguments))

    def _alike(self, *arguments: Any) -> list[list[Any]]:
        """Return shares that give every rank the same arguments."""
        return [[argument] * len(self.built.addresses) for argument in arguments]

    def _plan(self, rollouts: Sequence[Rollout], replay: bool) -> Plan:
        # A rank that refuses its share would leave the others waiting in a collective.
        built = self.built
        built.features.check([rollout.prompt for rollout in rollouts])
        for rollout in rollouts:
            built.features.check_kept(rollout.prompt, rollout.kept)
            if replay and rollout.experts is None:
                raise ConfigError(f"prompt {rollout.prompt.id!r}: the engine recorded no experts to replay")
        lengths = [sequence_length(rollout) for rollout in rollouts]
        return plan_packs(lengths, built.settings.max_pack_tokens, built.settings.world_size)
