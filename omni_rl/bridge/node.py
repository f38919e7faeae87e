"""Starts a Ray node of the bridge's own: a driver needs one on its host, and a coordinator's host need not have any."""

import socket
import subprocess
import sys
from pathlib import Path

from omni_rl.processes import end_with_parent

OBJECT_STORE = 128 * 2**20
"""The bytes of the node's object store: enough for the probe's media tensors on their way to the engines."""


def join(address: str) -> None:
    """Start a node that offers nothing to the cluster at `address`; it ends with the thread that called.

    `ray.init` waits for the node. Raises `OSError` if nothing takes connections at `address`.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        # On a host of several networks, Ray could pick one that the cluster cannot reach.
        own = connection.getsockname()[0]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    command += [
        f"--address={address}",
        f"--node-ip-address={own}",
        "--num-cpus=0",
        "--num-gpus=0",
        f"--object-store-memory={OBJECT_STORE}",
    ]
    # Ray ends the node's own processes with it.
    subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)  # noqa: S603, the command is made here
