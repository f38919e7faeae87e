"""Starts a pair of policies here: vLLM actors and an FSDP2 trainer group on a Ray of this process's own."""

import contextlib
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from omni_rl.actors import ReservedBundle, reserve
from omni_rl.errors import WeightUpdateError
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.policies.dealing import Ask
from omni_rl.policies.local_ray import local_ray
from omni_rl.policies.pair import Pair
from omni_rl.policies.settings import NodesSettings, rollout_names
from omni_rl.policies.types import Placed
from omni_rl.rollout.handle import CPUS, RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.sync.journal import Journal
from omni_rl.sync.result import SyncResult
from omni_rl.sync.sources import FsdpSource
from omni_rl.sync.weight_sync import WeightSync
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from omni_rl.vllm_engine import distribution

ONE_NODE = NodesSettings()
B = TypeVar("B")


class LocalPair(Pair[TrainerGroup]):
    """Both policies of a run on this process's own Ray. Make it with `started`. `journal` is the journal of its weight
    syncs."""

    def __init__(
        self, rollouts: Sequence[RolloutHandle], trainer: TrainerGroup, journal: Journal, sync: WeightSync
    ) -> None:
        super().__init__(rollouts, trainer)
        self.journal = journal
        self._sync = sync

    @property
    def engine_version(self) -> str:
        """The installed version of vLLM."""
        found = distribution()
        assert found is not None, "an engine has started"
        return found[1]

    @property
    def parameters(self) -> int:
        """The number of parameters that the checkpoint has."""
        return self.rollouts[0].parameters

    @property
    def weight_version(self) -> str:
        """The version of the weights that the engines sample with."""
        return self.rollouts[0].weight_version

    @property
    def actors(self) -> list[Placed]:
        """The present places of the trainer's ranks and of the engines."""
        ranks = [Placed(f"rank-{number}", address) for number, address in enumerate(self.trainer.built.addresses)]
        engines = [
            Placed(handle.name, handle.address, "slab" if handle.slabs is None else "object_store")
            for handle in self.rollouts
        ]
        return [*ranks, *engines]

    def sync(self) -> SyncResult:
        """Bring the trainer's weights to every engine in one transaction; the versions are equal afterwards.

        Raises what `WeightSync.sync` raises.
        """
        return self._sync.sync(FsdpSource(self.trainer))

    def revive(self) -> None:
        """Replace lost engines, and bring them to the weights of the last sync. Raises `QuarantinedError` if no
        engine could be brought to them."""
        self._sync.repair()

    def _dealt(self, alike: Sequence[Hashable], ask: Ask[RolloutHandle, B]) -> list[B]:
        answers = super()._dealt(alike, ask)
        if not all(handle.usable for handle in self.rollouts):
            self.revive()  # not before: those that live had the answers sooner than a successor starts
        return answers


@contextlib.contextmanager
def started(
    engine: EngineSettings,
    train: TrainSettings,
    *,
    replicas: int = 1,
    nodes: NodesSettings = ONE_NODE,
    journal: Journal | None = None,
) -> Iterator[LocalPair]:
    """Start Ray and both policies of `engine.run` with the weights of `engine.model`; nothing of them is left behind.

    `journal` is the journal of the syncs; without it, they have a temporary one, which is removed at the end.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        EngineDeadError, TrainerDeadError: Ray could not start an actor.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(local_ray(nodes, engine.run))
        ranks = _bundles({"CPU": train.cpus_per_rank}, train.world_size, nodes, first_here=True)
        engines = _bundles({"CPU": CPUS}, replicas, nodes, first_here=False)
        rollouts = [
            stack.enter_context(RolloutHandle.start(engine, name=name, namespace=engine.run, bundle=bundle))
            for name, bundle in zip_longest(rollout_names(replicas), engines)
        ]
        trainer = stack.enter_context(TrainerGroup.start(engine.model, train, engine.run, bundles=ranks))
        _require_same_version(rollouts, trainer)
        if journal is None:
            journal = stack.enter_context(_temporary_journal(engine.run))
        sync = stack.enter_context(
            weight_sync(rollouts, journal, transport="slab" if nodes.count == 1 else "object_store")
        )
        yield LocalPair(rollouts, trainer, journal, sync)


@contextlib.contextmanager
def _temporary_journal(run: str) -> Iterator[Journal]:
    """Open a journal that is this process's alone; its file stays behind only if the process is killed."""
    with (
        tempfile.TemporaryDirectory(prefix="omni-rl-") as folder,
        opened_journal(Path(folder) / "ledger.db", run) as journal,
    ):
        yield journal


def _bundles(need: dict[str, float], count: int, nodes: NodesSettings, *, first_here: bool) -> list[ReservedBundle]:
    """Reserve room for `count` actors if there are several nodes to deal them to; on one node, return no bundles."""
    return [] if nodes.count == 1 else reserve([need] * count, nodes.strategy, first_here=first_here)


def _require_same_version(rollouts: Sequence[RolloutHandle], trainer: TrainerGroup) -> None:
    version = str(trainer.version())
    for handle in rollouts:
        if handle.weight_version != version:
            raise WeightUpdateError(
                f"{handle.name} holds {handle.weight_version}, the trainer {version}, of the same checkpoint"
            )
