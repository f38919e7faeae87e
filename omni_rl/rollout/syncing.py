"""Weight syncs of a run: this host's keeper and slabs, and the replicas, put together."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray
import torch

from omni_rl.rollout.actor import RolloutHandle
from omni_rl.rollout.replica import RolloutReplica
from omni_rl.settings import Transport
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.crew import Deadlines
from omni_rl.sync.journal import Journal
from omni_rl.sync.keeper import Keeper
from omni_rl.sync.keepers import KeeperHandle, node_at
from omni_rl.sync.object_store import ObjectStoreTransport
from omni_rl.sync.slabs import SHARED_MEMORY, SlabPair
from omni_rl.sync.sources import DirectorySource
from omni_rl.sync.states import Observer
from omni_rl.sync.weight_sync import WeightSync


@contextlib.contextmanager
def weight_sync(
    handles: Sequence[RolloutHandle],
    journal: Journal,
    *,
    base: Path = SHARED_MEMORY,
    transport: Transport = "slab",
    deadlines: Deadlines | None = None,
    observe: Observer = lambda event: None,
    held: str | None = None,
    keep: bool = False,
) -> Iterator[WeightSync]:
    """An opened `WeightSync` of engines that were started with the same settings.

    `journal` is what a successor of this process reads, so it belongs on a disk, not beside the slabs in `base`; it
    stays its owner's to close. Both slabs are removed at the end, on all hosts, unless a successor is to `keep` them.
    With the `transport` object_store, engines may be on other hosts than this process and the trainer's first rank.
    `held`: why nothing is to be generated, for engines that take the place of those given.

    Raises what `Keeper` and `WeightSync.open` raise.
    """
    settings = handles[0].settings
    dtype = getattr(torch, settings.dtype)
    places = CheckpointTensors(settings.model, dtype).places()
    with contextlib.ExitStack() as stack:
        keeper = Keeper(settings.run, places, base)
        stack.callback(keeper.close, remove=not keep)
        hosts = None if transport == "slab" else ObjectStoreTransport(lambda address: keeper_at(address, keeper))
        if hosts is not None and not keep:
            stack.callback(hosts.close)
        slabs = SlabPair(keeper.directory, hosts)
        stack.callback(slabs.close)

        def settle(handle: RolloutHandle) -> None:
            if hosts is not None:
                away = handle.address != ray.util.get_node_ip_address()
                handle.slabs = hosts.reach(handle.address, slabs) if away else None

        for handle in handles:
            settle(handle)
        replicas = [RolloutReplica(handle, held, settle) for handle in handles]
        sync = WeightSync(journal, slabs, replicas, deadlines=deadlines, observe=observe)
        stack.callback(sync.close)
        sync.open(DirectorySource(settings.model, dtype, run=settings.run))
        yield sync


def keeper_at(address: str, keeper: Keeper) -> KeeperHandle:
    """A keeper of the same run on another host; its slabs have a name of their own, for hosts that share a memory."""
    record = keeper.record
    run = f"{record.run}-on-{address.replace(':', '.')}"
    return KeeperHandle.start(run, record.places, base=keeper.directory.parent, node=node_at(address))
