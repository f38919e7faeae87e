"""Brings the ranks of a group together, without a race for a port."""

import os
import socket
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # re-exported without a declaration

LOOPBACK = "127.0.0.1"


def listen(host: str, timeout: float) -> tuple[TCPStore, int]:
    """Open rank 0's store, and return it and its port. The kernel chooses the port, and the socket is bound before
    anyone is told the port."""
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        master_listen_fd=listener.detach(),
    )
    return store, port


def connect(host: str, port: int, timeout: float) -> TCPStore:
    """Connect to the store that rank 0 opened, and return it."""
    return TCPStore(host, port, timeout=timedelta(seconds=timeout))


def join(rank: int, world_size: int, backend: str, host: str, store: TCPStore, timeout: float) -> None:
    """Make this process rank `rank` of the default process group.

    A collective in which a peer stays silent fails after `timeout` seconds.
    """
    if host == LOOPBACK:
        # gloo picks the address that the host's name resolves to, which need not exist on a laptop or in a sandbox.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout))
