"""Weight syncs of a run: this host's keeper and slabs, and the replicas, put together."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from omni_rl.rollout.actor import RolloutHandle
from omni_rl.rollout.replica import RolloutReplica
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.crew import Deadlines
from omni_rl.sync.journal import Journal
from omni_rl.sync.keeper import Keeper
from omni_rl.sync.slabs import SHARED_MEMORY, SlabPair
from omni_rl.sync.sources import DirectorySource
from omni_rl.sync.states import Observer
from omni_rl.sync.transport import WeightTransport
from omni_rl.sync.weight_sync import WeightSync


@contextlib.contextmanager
def weight_sync(
    handles: Sequence[RolloutHandle],
    journal: Journal,
    *,
    base: Path = SHARED_MEMORY,
    transport: WeightTransport | None = None,
    deadlines: Deadlines | None = None,
    observe: Observer = lambda event: None,
    held: str | None = None,
    keep: bool = False,
) -> Iterator[WeightSync]:
    """An opened `WeightSync` of engines that were started with the same settings.

    `journal` is what a successor of this process reads, so it belongs on a disk, not beside the slabs in `base`; it
    stays its owner's to close. Both slabs are removed at the end, unless a successor is to `keep` them. `transport`
    brings weights to engines on other hosts. `held`: why nothing is to be generated, for engines
    that take the place of those given.

    Raises what `Keeper` and `WeightSync.open` raise.
    """
    settings = handles[0].settings
    dtype = getattr(torch, settings.dtype)
    places = CheckpointTensors(settings.model, dtype).places()
    with contextlib.ExitStack() as stack:
        keeper = Keeper(settings.run, places, base)
        stack.callback(keeper.close, remove=not keep)
        slabs = SlabPair(keeper.directory, transport)
        stack.callback(slabs.close)
        replicas = [RolloutReplica(handle, held) for handle in handles]
        sync = WeightSync(journal, slabs, replicas, deadlines=deadlines, observe=observe)
        stack.callback(sync.close)
        sync.open(DirectorySource(settings.model, dtype, run=settings.run))
        yield sync
