"""One rank of a trainer group: the process that a Ray actor hosts."""

import contextlib
import gc
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import ray
import torch
from torch.distributed.device_mesh import init_device_mesh

from omni_rl.agent.trainer import of_shares
from omni_rl.errors import GradientError
from omni_rl.heap import return_free_memory
from omni_rl.media.slots import FeatureCounts
from omni_rl.models.families import family_of
from omni_rl.models.family import Family
from omni_rl.models.storage import Stored
from omni_rl.models.training_model import TrainingModel
from omni_rl.rollout.types import Rollout
from omni_rl.sync import fill
from omni_rl.sync.group import Group
from omni_rl.sync.manifest import Entry, Manifest
from omni_rl.sync.parts import Shares
from omni_rl.sync.released import Released
from omni_rl.sync.slab import OpenSlabs
from omni_rl.sync.version import WeightVersion
from omni_rl.train import checkpoint, rendezvous
from omni_rl.train.device import BACKENDS, own_device
from omni_rl.train.pulse import HEALTH
from omni_rl.train.scoring import score_pack
from omni_rl.train.settings import Objective, TrainSettings
from omni_rl.train.snapshots import Snapshots
from omni_rl.train.step import build_optimizer, train_step
from omni_rl.train.targets import Targets
from omni_rl.train.types import Score, StepStats
from omni_rl.train.value import ValueHead
from omni_rl.watch.guard import guarded
from omni_rl.watch.updates import Weights, announcer

T = TypeVar("T")


class TrainWorker:
    """Rank `rank` of `settings.world_size`. Every method that touches the weights is a collective: all ranks call it.

    `score` and `update` get this rank's share: packs of rollouts, as many as every other rank gets.
    """

    device: torch.device
    """The device on which the rank computes, once it has joined the process group."""
    family: Family
    """The model's family, once it is built."""
    model: TrainingModel
    """The rank's share of the model, once it is built."""

    def __init__(self, rank: int, settings: TrainSettings, run: str, attempt: int) -> None:
        torch.manual_seed(settings.seed)
        self.rank = rank
        self.settings = settings
        self._run = run
        self._attempt = attempt
        self._dtype = getattr(torch, settings.dtype)
        self._snapshots = Snapshots()
        self._number = 0
        self._announcer = guarded(partial(announcer, posts=rank == 0), "updates are not announced")

    def locate(self) -> tuple[str, int]:
        """Return where this rank runs: the address of its node, and its process id."""
        return ray.util.get_node_ip_address(), os.getpid()

    @ray.method(concurrency_group=HEALTH)  # type: ignore[untyped-decorator]
    def alive(self) -> None:
        """Answer a ping whatever the rank computes, unless the process is stopped."""

    def listen(self, host: str) -> int:
        """Open the store at which the ranks meet, and return its port; only rank 0 is asked to."""
        self._store, port = rendezvous.listen(host, self.settings.collective_timeout)
        return port

    def join(self, host: str, port: int) -> None:
        """Become a member of the process group."""
        settings = self.settings
        # Beside `alive`, Ray runs the other methods in one thread, which is not the constructor's; and OpenMP counts
        # threads for each.
        torch.set_num_threads(settings.threads)
        if self.rank != 0:
            self._store = rendezvous.connect(host, port, settings.collective_timeout)
        self.device = own_device(settings.device)
        backend = BACKENDS[settings.device]
        rendezvous.join(self.rank, settings.world_size, backend, host, self._store, settings.collective_timeout)
        self._mesh = init_device_mesh(settings.device, (settings.world_size,))
        self._group = Group.default()
        self._slabs = OpenSlabs()

    def build(self, directory: Path, number: int | None) -> WeightVersion:
        """Load the weights of a checkpoint, and its optimiser state and value head if it has them; return the version,
        which has that number, or the next one where `number` is None."""
        family = family_of(directory)
        model = family.training.load_sharded(directory, self._mesh, self._dtype, self.settings.numerics)
        optimizer = build_optimizer(model, self.settings)
        if (directory / checkpoint.OPTIMIZER).exists():
            checkpoint.load_optimizer(model, optimizer, directory)
        head = ValueHead(model.head_weight().shape[1], self.settings, self.device)
        if (directory / checkpoint.VALUE_HEAD).exists():
            head.load(directory / checkpoint.VALUE_HEAD)
        self.family, self.model, self._optimizer, self._head = family, model, optimizer, head
        self._number = self._number + 1 if number is None else number
        self._digest: str | None = None
        # A model has reference cycles: without collecting them, the heaps would grow with each model that is replaced.
        gc.collect()
        return_free_memory()
        return self.version()

    def feature_counts(self) -> FeatureCounts:
        """Return the rules by which the model makes features of media; not a collective."""
        return self.family.training.feature_counts(self.model.config)

    def version(self) -> WeightVersion:
        """Return the version of the current weights, with the digest of exactly the tensors that `fill` writes."""
        if self._digest is None:
            tensors = self.model.released_tensors()
            self._digest = fill.digest(tensors, self._places(tensors), group=self._group)
        return WeightVersion(self._run, self._attempt, self._number, self._digest)

    def read_back(self) -> tuple[Entry, ...]:
        """Return the entry of every released tensor, with the checksum of the weights that are held now."""
        tensors = self.model.released_tensors()
        return fill.checksums(tensors, self._places(tensors), group=self._group)

    def _places(self, tensors: Sequence[Released]) -> tuple[Entry, ...]:
        return fill.places_of(tensors, self._dtype, self.family.released)

    def fill(self, path: Path, here: bool, claim: str | None) -> Manifest:
        """Write the weights into the slab at `path`, each rank its own shards, and return the slab's manifest. `here`
        says that the slab is on this rank's host, and `claim` is the claim with which it was given to the trainer."""

        def open_it() -> None:
            if here:
                self._slabs.at(path)

        self._group.together(open_it)
        tensors = self.model.released_tensors()
        manifest = fill.fill(
            self._slabs.at(path) if here else None,
            tensors,
            self._places(tensors),
            run=self._run,
            attempt=self._attempt,
            number=self._number,
            origin="trainer",
            group=self._group,
            claim=claim,
        )
        self._digest = manifest.version.digest
        if self._announcer is not None and self._number:
            self._announcer.announce(self._number, self._fingerprints, digest=self._digest)
        return manifest

    def _fingerprints(self) -> Weights:
        shares = Shares(first=self._group.first)
        tensors = ((each.name, shares.of(each)[1], each.shape) for each in self.model.released_tensors())
        return Weights(of_shares(tensors, dtype=self._dtype), ())

    def take_snapshot(self, name: str) -> None:
        """Hold a snapshot of the current weights, to score with them later."""
        self._snapshots.take(name, self.model, str(self.version()))

    def drop_snapshot(self, name: str | None) -> None:
        self._snapshots.drop(name)

    def score(self, packs: Sequence[Sequence[Rollout]], snapshot: str | None, replay: bool) -> list[list[Score]]:
        version = str(self.version()) if snapshot is None else self._snapshots.version(snapshot)
        with contextlib.nullcontext() if snapshot is None else self._snapshots.in_place(snapshot, self.model):
            return [
                score_pack(
                    self.model,
                    each,
                    version=version,
                    logprob_chunk=self.settings.logprob_chunk,
                    head=self._head,
                    replay=replay,
                    device=self.device,
                )
                for each in packs
            ]

    def update(
        self, packs: Sequence[Sequence[Rollout]], targets: Sequence[Sequence[Targets]], objective: Objective
    ) -> StepStats:
        stats = train_step(
            self.model,
            self._optimizer,
            packs,
            targets,
            objective=objective,
            settings=self.settings,
            head=self._head,
            device=self.device,
        )
        if not math.isfinite(stats.grad_norm):
            raise GradientError(f"the gradient's norm is {stats.grad_norm}; the weights stay at {self.version()}")
        self._number += 1
        self._digest = None
        return stats

    def run(self, function: "Callable[[TrainWorker], T]") -> T:
        """Call a function with this rank, and return its result; if it runs the model, all ranks have to call it."""
        return function(self)

    def save(self, directory: Path) -> None:
        """Write this rank's slices of a checkpoint."""
        version = self.version()
        checkpoint.write(
            directory,
            self.model.write_beside,
            Stored.served(self.model.released_tensors(), self.family.released, torch.float32),
            checkpoint.optimizer_tensors(self.model, self._optimizer),
            {name: tensor.cpu() for name, tensor in self._head.tensors().items()},
            self._group,
            run=version.run,
            attempt=version.attempt,
            number=version.number,
            dtype=self.settings.dtype,
        )

    def read_record(self, directory: Path) -> checkpoint.Record:
        """Verify this rank's share of a checkpoint's files, and return the checkpoint's record."""
        return checkpoint.read_record(directory, self._group)
