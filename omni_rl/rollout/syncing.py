"""Weight syncs of a run: this host's keeper and slabs, the journal and the replicas put together."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from omni_rl.rollout.actor import RolloutHandle
from omni_rl.rollout.replica import RolloutReplica
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.crew import Deadlines
from omni_rl.sync.journal import SqliteJournal
from omni_rl.sync.keeper import Keeper
from omni_rl.sync.slabs import SHARED_MEMORY, SlabPair
from omni_rl.sync.sources import DirectorySource
from omni_rl.sync.states import Observer
from omni_rl.sync.transport import WeightTransport
from omni_rl.sync.weight_sync import WeightSync

JOURNAL = "journal.sqlite"


@contextlib.contextmanager
def weight_sync(
    handles: Sequence[RolloutHandle],
    *,
    journal: Path | None = None,
    base: Path = SHARED_MEMORY,
    transport: WeightTransport | None = None,
    deadlines: Deadlines | None = None,
    observe: Observer = lambda event: None,
) -> Iterator[WeightSync]:
    """An opened `WeightSync` of engines that were started with the same settings.

    `journal` is the file that a successor of this process reads; without one it lies beside the slabs in `base`. Both
    sets of slabs are removed at the end. `transport` brings weights to engines on other hosts.

    Raises what `Keeper` and `WeightSync.open` raise.
    """
    settings = handles[0].settings
    dtype = getattr(torch, settings.dtype)
    places = CheckpointTensors(settings.model, dtype).places()
    with contextlib.ExitStack() as stack:
        keeper = stack.enter_context(Keeper(settings.run, places, base))
        records = SqliteJournal(journal or keeper.directory / JOURNAL)
        stack.callback(records.close)
        slabs = SlabPair(keeper.directory, transport)
        stack.callback(slabs.close)
        replicas = [RolloutReplica(handle) for handle in handles]
        sync = WeightSync(records, slabs, replicas, deadlines=deadlines, observe=observe)
        stack.callback(sync.close)
        sync.open(DirectorySource(settings.model, dtype, run=settings.run))
        yield sync
