"""Puts together what the weight syncs of a run need: this host's slab owner and slabs, and the replicas."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import torch

from omni_rl.cuda import why_no_cuda
from omni_rl.errors import ConfigError
from omni_rl.models.families import family_of
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.replica import RolloutReplica
from omni_rl.settings import TRANSFERS, WITHOUT_DEVICES, Transport
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.journal import Journal
from omni_rl.sync.object_store import ObjectStoreTransport
from omni_rl.sync.ownership import SHARED_MEMORY
from omni_rl.sync.replica_group import Deadlines
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slab_owner_actor import SlabOwnerHandle, node_at
from omni_rl.sync.slabs import ON_HOST, SlabPair
from omni_rl.sync.sources import DirectorySource
from omni_rl.sync.states import Observer
from omni_rl.sync.weight_sync import WeightSync

if TYPE_CHECKING:
    from omni_rl.rollout.vllm_transport import VllmTransport


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
    device: torch.device | None = None,
) -> Iterator[WeightSync]:
    """Open a `WeightSync` of engines that were started with the same settings, and close it at the end of the context.

    `journal` is what a successor of this process reads, so it belongs on a disk, not beside the slabs in `base`; its
    owner closes it. Both slabs are removed at the end, on all hosts, unless `keep` leaves them to a successor. With the
    `transport` object_store, engines may be on other hosts than this process and the trainer's first rank. With
    vllm_nccl and vllm_ipc, vLLM's own weight transfer sends from `device`, by default from a CUDA device of this
    process; the slabs are still there, to prove every engine against, and for an engine that starts anew to copy from.
    `held` is why nothing is to be generated, for engines that take the place of those given.

    Raises what `SlabOwner` and `WeightSync.open` raise, and `ConfigError` before anything is made if there is no CUDA
    device to send from or the engines were started for another transport.
    """
    sender = _sender(transport, handles, device)
    settings = handles[0].settings
    dtype = getattr(torch, settings.dtype)
    released = family_of(settings.model).released
    places = CheckpointTensors(settings.model, dtype, released).places()
    with contextlib.ExitStack() as stack:
        owner = SlabOwner(settings.run, places, base)
        stack.callback(owner.close, remove=not keep)
        hosts = None
        if transport == "object_store":
            hosts = ObjectStoreTransport(lambda address: owner_at(address, owner))
            if not keep:
                stack.callback(hosts.close)
        if sender is not None:
            stack.callback(sender.close)
        slabs = SlabPair(owner.directory, hosts or sender)
        stack.callback(slabs.close)

        def settle(handle: RolloutHandle) -> None:
            if hosts is not None:
                away = handle.address != ray.util.get_node_ip_address()
                handle.slabs = hosts.reach(handle.address, slabs) if away else None
            if sender is not None:
                sender.close()  # an engine that starts anew has no part in a connection that was made before it

        for handle in handles:
            settle(handle)
        replicas = [RolloutReplica(handle, held, settle) for handle in handles]
        sync = WeightSync(journal, slabs, replicas, deadlines=deadlines, observe=observe)
        stack.callback(sync.close)
        sync.open(DirectorySource(settings.model, dtype, released, run=settings.run, origin="checkpoint"))
        yield sync


def sending_device(transport: Transport) -> torch.device | None:
    """Return the CUDA device of this process that vLLM's own transfer sends from, None for a transport that needs none.

    ipc hands over the memory of an engine's device, so it sends from the first, which Ray deals out first. nccl accepts
    a device only once, so it sends from the last. Raises `ConfigError` if there is no device.
    """
    if transport not in TRANSFERS:
        return None
    why = why_no_cuda()
    if why is not None:
        raise ConfigError(
            f'transport "{transport}" sends weights from a CUDA device of this process, but {why}; {WITHOUT_DEVICES}'
        )
    return torch.device("cuda", 0 if TRANSFERS[transport] == "ipc" else torch.cuda.device_count() - 1)


def _sender(
    transport: Transport, handles: Sequence[RolloutHandle], device: torch.device | None
) -> "VllmTransport | None":
    """Return vLLM's own transfer to these engines, None if `transport` is another one. Raises `ConfigError` if there is
    no CUDA device or the engines were started for another transport."""
    if transport not in TRANSFERS:
        return None
    backend, device = TRANSFERS[transport], device or sending_device(transport)
    assert device is not None, "sending_device has one, or raises"
    other = [handle.name for handle in handles if handle.settings.weight_transfer != backend]
    if other:
        raise ConfigError(
            f'transport "{transport}" reaches engines that were started for it, and {", ".join(other)} were not; end '
            "them (omni-rl down, if omni-rl up started them) and start them anew"
        )
    # Only a process that sends with vLLM imports it: a bridge is up sooner without.
    from omni_rl.rollout.transfer import Engines, init_info
    from omni_rl.rollout.vllm_transport import VllmTransport

    return VllmTransport(lambda: init_info(backend, len(handles)), Engines(handles), device)


def owner_at(address: str, owner: SlabOwner) -> SlabOwnerHandle:
    """Start the slab owner of the same run on another host.

    Its slabs have a name of their own, because several of Ray's hosts may be one machine with one memory.
    """
    record = owner.record
    run = f"{record.run}{ON_HOST}{address.replace(':', '.')}"
    return SlabOwnerHandle.start(run, record.places, base=owner.directory.parent, node=node_at(address))
