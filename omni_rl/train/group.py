"""The trainer as a job sees it: one policy over several ranks, whose work is dealt out here."""

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import ray

from omni_rl.actors import ReservedBundle, share
from omni_rl.agent.settings import for_actor
from omni_rl.errors import ConfigError, OmniRLError, TrainerDeadError
from omni_rl.media.slots import FeatureCounts
from omni_rl.processes import PLACEMENT_TIMEOUT
from omni_rl.rollout.types import Rollout
from omni_rl.sync.manifest import Manifest
from omni_rl.sync.version import WeightVersion
from omni_rl.train.packing import Plan, distribute, plan_packs, restore, sequence_length
from omni_rl.train.pulse import HEALTH
from omni_rl.train.ranks import Ranks, died
from omni_rl.train.rendezvous import LOOPBACK
from omni_rl.train.settings import PLAIN, Objective, TrainSettings
from omni_rl.train.targets import Targets, targets_of
from omni_rl.train.types import Score, StepStats
from omni_rl.train.worker import TrainWorker

T = TypeVar("T")


class TrainerGroup:
    """`settings.world_size` ranks that hold one FSDP copy of a policy. Make one with `start`; close it.

    Rollouts keep their order. A rank that dies, or fails inside a collective, ends the group: the call raises
    TrainerDeadError, and so does every later one. One that is stopped is waited for, `settings.collective_timeout`
    seconds.
    """

    def __init__(self, model: Path, settings: TrainSettings, ranks: Ranks, features: FeatureCounts) -> None:
        self.settings = settings
        self._model = model
        self._ranks = ranks
        self._features = features
        self._snapshots: set[str] = set()

    @classmethod
    def start(
        cls,
        model_path: Path,
        settings: TrainSettings,
        run: str,
        attempt: int = 1,
        bundles: Sequence[ReservedBundle] = (),
    ) -> "TrainerGroup":
        """Start the ranks on the checkpoint in `model_path`, whose weights get number 0; where room was reserved for
        each, in those `bundles`.

        Raises:
            CheckpointError, ConfigError: the checkpoint cannot be loaded.
            ConfigError: ranks are to be on devices, and the cluster has too few.
            TrainerDeadError: Ray could not place the ranks, or one failed while starting.
        """
        _require_devices(settings)
        rooms: Sequence[ReservedBundle | None] = bundles or [None] * settings.world_size
        shares = [share(settings.cpus_per_rank, settings.set_aside, room, for_actor(run)) for room in rooms]
        worker = ray.remote(concurrency_groups={HEALTH: 1})(TrainWorker)
        actors = [worker.options(max_restarts=0, **its) for its in shares]
        ranks = Ranks(
            [actor.remote(rank, settings, run, attempt) for rank, actor in enumerate(actors)],
            settings.collective_timeout,
        )
        try:
            addresses = ranks.locate(PLACEMENT_TIMEOUT)
            host = LOOPBACK if _one_machine(addresses) else addresses[0]
            port = ranks.first("listen", host)
            ranks.call("join", host, port)
            model = Path(model_path).resolve()
            ranks.call("build", model, 0)
            features: FeatureCounts = ranks.first("feature_counts")
        except TrainerDeadError as error:
            # No group to be dead yet: a bad checkpoint is the caller's to mend.
            if isinstance(error.__cause__, OmniRLError):
                raise error.__cause__ from None
            raise
        except BaseException:
            ranks.close()
            raise
        return cls(model, settings, ranks, features)

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks on this node."""
        return self._ranks.pids

    def stopped(self) -> str:
        """Which ranks are stopped, told at once whatever they compute; empty while all run."""
        return self._ranks.pulse.look()

    def dead(self) -> str:
        """Which ranks' processes have ended, told at once; empty while none has."""
        gone = self._ranks.pulse.gone()
        return died(gone) if gone else ""

    @property
    def addresses(self) -> list[str]:
        """Of the nodes that the ranks are on, by rank."""
        return self._ranks.addresses

    def score(self, rollouts: Sequence[Rollout], snapshot: str | None = None, *, replay: bool = False) -> list[Score]:
        """The trainer's logprobs, router choices and media digests of every answer, by its current weights or by those
        of a `snapshot`. With `replay` experts are those that the engine used.

        Raises:
            ConfigError: a rollout is longer than `max_pack_tokens`, there is no snapshot of that name, or the engine
                recorded no experts to replay.
            PromptError, MediaError: a media item does not fit its slots in the prompt.
        """
        if snapshot is not None and snapshot not in self._snapshots:
            there = ", ".join(sorted(self._snapshots)) or "none"
            raise ConfigError(f"there is no snapshot {snapshot!r} of the weights; there are: {there}")
        plan = self._plan(rollouts, replay)
        everywhere = [snapshot] * len(self._ranks), [replay] * len(self._ranks)
        return restore(plan, self._ranks.each("score", distribute(plan, rollouts), *everywhere))

    def take_snapshot(self, name: str) -> None:
        """Hold on to the current weights, to `score` with them later; they live through `load` and `reset`."""
        self._ranks.call("take_snapshot", name)
        self._snapshots.add(name)

    def drop_snapshot(self, name: str | None = None) -> None:
        """Let the snapshot of that name go, if there is one; without a name, all of them."""
        for snapshot in self._snapshots & {name} if name is not None else set(self._snapshots):
            self._ranks.call("drop_snapshot", snapshot)
            self._snapshots.discard(snapshot)

    def update(
        self, rollouts: Sequence[Rollout], targets: Sequence[float | Targets], objective: Objective = PLAIN
    ) -> StepStats:
        """One optimiser step. A target that is a number is the advantage of all tokens of its answer.

        Raises:
            ConfigError: nothing to learn from; targets too many, too few or not finite; a rollout too long.
            PromptError, MediaError: a media item does not fit its slots in the prompt.
            GradientError: the gradient is not finite; weights and version are as before.
        """
        found = targets_of(rollouts, targets)
        plan = self._plan(rollouts, objective.replay_routing)
        shares = distribute(plan, rollouts), distribute(plan, found), [objective] * len(self._ranks)
        stats: StepStats = self._ranks.each("update", *shares)[0]
        return stats

    def reset(self) -> None:
        """Take the weights that the group started with, and a fresh optimiser; the version's number goes on."""
        self._ranks.call("build", self._model, self.version().number + 1)

    def version(self) -> WeightVersion:
        """The version of the current weights."""
        version: WeightVersion = self._ranks.call("version")[0]
        return version

    def fill(self, path: Path, claim: str | None = None) -> Manifest:
        """Write the current weights, as an engine takes them, into the slab at `path` on rank 0's host, and seal it.
        `claim`: what the slab was given to the trainer with.

        Raises:
            SlabError: the slab is not there, too small, being written, or another's by now (its kinds tell); the group
                lives on.
        """
        addresses = self._ranks.addresses
        here = [address == addresses[0] for address in addresses]
        manifest: Manifest = self._ranks.each("fill", [path] * len(addresses), here, [claim] * len(addresses))[0]
        return manifest

    def on_ranks(self, run: Callable[[TrainWorker], T]) -> list[T]:
        """What a function that is known in both processes gives of every rank, by rank."""
        return self._ranks.call("run", run)

    def save(self, directory: Path) -> None:
        """Write a checkpoint: weights that vLLM serves, optimiser state and record; complete or not at all.

        Raises:
            CheckpointError: the directory exists or cannot be written; the group lives on.
        """
        self._ranks.call("save", Path(directory).resolve())

    def load(self, directory: Path) -> None:
        """Continue from a checkpoint: weights, optimiser state and version number.

        Raises:
            CheckpointError: it is none, or its tensors changed since; the group keeps the weights it has.
        """
        path = Path(directory).resolve()
        record = self._ranks.call("read_record", path)[0]
        self._ranks.call("build", path, record.number)

    def close(self) -> None:
        """End every rank's process. Idempotent."""
        self._ranks.close()

    def __enter__(self) -> "TrainerGroup":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, rollouts: Sequence[Rollout], replay: bool) -> Plan:
        # A rank that refuses its share would leave the others waiting in a collective.
        self._features.check([rollout.prompt for rollout in rollouts])
        for rollout in rollouts:
            self._features.check_kept(rollout.prompt, rollout.kept)
            if replay and rollout.experts is None:
                raise ConfigError(f"prompt {rollout.prompt.id!r}: the engine recorded no experts to replay")
        lengths = [sequence_length(rollout) for rollout in rollouts]
        return plan_packs(lengths, self.settings.max_pack_tokens, self.settings.world_size)


def _require_devices(settings: TrainSettings) -> None:
    """Ray would wait for devices that no node has."""
    present = ray.cluster_resources().get("GPU", 0.0)
    if settings.device == "cuda" and present < settings.world_size:
        raise ConfigError(
            f"{settings.world_size} ranks need a CUDA device each, and this Ray cluster has {present:g}; lower "
            'world_size, or set device = "cpu"'
        )


def _one_machine(addresses: Sequence[str]) -> bool:
    """Several nodes of one machine have addresses of their own, of the loopback network."""
    return len(set(addresses)) == 1 or all(ip_address(address).is_loopback for address in addresses)
