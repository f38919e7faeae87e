"""One rank of a trainer group: the process that a Ray actor hosts."""

import contextlib
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
from omni_rl.media.slots import FeatureCounts
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.parallel import load_sharded
from omni_rl.models.nemotron_omni.shards import released_tensors, stored_tensors
from omni_rl.rollout.types import Rollout
from omni_rl.sync import fill
from omni_rl.sync.group import Group
from omni_rl.sync.manifest import Entry, Manifest
from omni_rl.sync.parts import Shares
from omni_rl.sync.slab import OpenSlabs
from omni_rl.sync.version import WeightVersion
from omni_rl.train import checkpoint, rendezvous
from omni_rl.train.device import BACKENDS, own_device
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

    Args of `score` and `update` are this rank's share: packs of rollouts, as many on every rank.
    """

    def __init__(self, rank: int, settings: TrainSettings, run: str, attempt: int) -> None:
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self._rank = rank
        self._settings = settings
        self._run = run
        self._attempt = attempt
        self._dtype = getattr(torch, settings.dtype)
        self._snapshots = Snapshots()
        self._announcer = guarded(partial(announcer, posts=rank == 0), "updates are not announced")

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def settings(self) -> TrainSettings:
        return self._settings

    @property
    def device(self) -> torch.device:
        """Where it computes, once it has joined."""
        return self._device

    @property
    def model(self) -> NemotronOmniForConditionalGeneration:
        """The rank's share of it, once it is built."""
        return self._model

    def locate(self) -> tuple[str, int]:
        """Where this rank runs: its node's address and its process id."""
        return ray.util.get_node_ip_address(), os.getpid()

    def listen(self, host: str) -> int:
        """Rank 0 only: open the store that the ranks meet at; returns its port."""
        self._store, port = rendezvous.listen(host, self._settings.collective_timeout)
        return port

    def join(self, host: str, port: int) -> None:
        """Become a member of the process group."""
        settings = self._settings
        if self._rank != 0:
            self._store = rendezvous.connect(host, port, settings.collective_timeout)
        self._device = own_device(settings.device)
        backend = BACKENDS[settings.device]
        rendezvous.join(self._rank, settings.world_size, backend, host, self._store, settings.collective_timeout)
        self._mesh = init_device_mesh(settings.device, (settings.world_size,))
        self._group = Group.default()
        self._slabs = OpenSlabs()

    def build(self, directory: Path, number: int) -> WeightVersion:
        """Take the weights of a checkpoint, and the optimiser state where there is one; they get number `number`."""
        backend = BackendConfig(numerics=self._settings.numerics)
        model = load_sharded(directory, self._mesh, self._dtype, backend)
        optimizer = build_optimizer(model, self._settings)
        if (directory / checkpoint.OPTIMIZER).exists():
            checkpoint.load_optimizer(model, optimizer, directory)
        head = ValueHead(model.config.llm_config.hidden_size, self._settings, self._device)
        if (directory / checkpoint.VALUE_HEAD).exists():
            head.load(directory / checkpoint.VALUE_HEAD)
        self._model, self._optimizer, self._head = model, optimizer, head
        self._number = number
        self._digest: str | None = None
        return self.version()

    def feature_counts(self) -> FeatureCounts:
        """What the model makes of media; not a collective."""
        return FeatureCounts.of(self._model.config)

    def version(self) -> WeightVersion:
        """The version of the current weights: the digest of exactly the tensors that `fill` writes."""
        if self._digest is None:
            tensors = released_tensors(self._model)
            self._digest = fill.digest(tensors, fill.places_of(tensors, self._dtype), group=self._group)
        return WeightVersion(self._run, self._attempt, self._number, self._digest)

    def read_back(self) -> tuple[Entry, ...]:
        """Every released tensor with the checksum of the weights that are held now."""
        tensors = released_tensors(self._model)
        return fill.checksums(tensors, fill.places_of(tensors, self._dtype), group=self._group)

    def fill(self, path: Path, here: bool) -> Manifest:
        """Write the weights into the slab at `path`, each rank its own shards; `here`: it is on this rank's host."""

        def open_it() -> None:
            if here:
                self._slabs.at(path)

        self._group.together(open_it)
        tensors = released_tensors(self._model)
        manifest = fill.fill(
            self._slabs.at(path) if here else None,
            tensors,
            fill.places_of(tensors, self._dtype),
            run=self._run,
            attempt=self._attempt,
            number=self._number,
            origin="trainer",
            group=self._group,
        )
        self._digest = manifest.version.digest
        if self._announcer is not None and self._number:
            self._announcer.announce(self._number, self._fingerprints)
        return manifest

    def _fingerprints(self) -> Weights:
        shares = Shares(first=self._group.first)
        tensors = ((each.name, shares.of(each)[1], each.shape) for each in released_tensors(self._model))
        return Weights(of_shares(tensors, dtype=self._dtype), ())

    def take_snapshot(self, name: str) -> None:
        """Hold on to the current weights, to score with them later."""
        self._snapshots.take(name, self._model, str(self.version()))

    def drop_snapshot(self, name: str) -> None:
        self._snapshots.drop(name)

    def score(self, packs: Sequence[Sequence[Rollout]], snapshot: str | None, replay: bool) -> list[list[Score]]:
        version = str(self.version()) if snapshot is None else self._snapshots.version(snapshot)
        with contextlib.nullcontext() if snapshot is None else self._snapshots.in_place(snapshot, self._model):
            return [
                score_pack(
                    self._model,
                    each,
                    version=version,
                    logprob_chunk=self._settings.logprob_chunk,
                    head=self._head,
                    replay=replay,
                    device=self._device,
                )
                for each in packs
            ]

    def update(
        self, packs: Sequence[Sequence[Rollout]], targets: Sequence[Sequence[Targets]], objective: Objective
    ) -> StepStats:
        stats = train_step(
            self._model,
            self._optimizer,
            packs,
            targets,
            objective=objective,
            settings=self._settings,
            head=self._head,
            device=self._device,
        )
        if not math.isfinite(stats.grad_norm):
            raise GradientError(f"the gradient's norm is {stats.grad_norm}; the weights stay at {self.version()}")
        self._number += 1
        self._digest = None
        return stats

    def run(self, function: "Callable[[TrainWorker], T]") -> T:
        """What a function gives of this rank; all ranks call it if it runs the model."""
        return function(self)

    def save(self, directory: Path) -> None:
        """Write a checkpoint, this rank its own slices."""
        version = self.version()
        checkpoint.write(
            directory,
            self._model.config,
            self._model.companions,
            stored_tensors(self._model, torch.float32),
            checkpoint.optimizer_tensors(self._model, self._optimizer),
            {name: tensor.cpu() for name, tensor in self._head.tensors().items()},
            self._group,
            run=version.run,
            attempt=version.attempt,
            number=version.number,
            dtype=self._settings.dtype,
        )

    def read_record(self, directory: Path) -> checkpoint.Record:
        """Verify a checkpoint, this rank a share of it."""
        return checkpoint.read_record(directory, self._group)
