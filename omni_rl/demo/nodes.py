"""Several Ray nodes on this machine, which stand for as many hosts."""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator

import ray
from ray.cluster_utils import Cluster as RayCluster

from omni_rl.config import NodesSettings
from omni_rl.sync.ownership import abandoned
from omni_rl.sync.slabs import SHARED_MEMORY, slab_directory

FIRST_HOST = 2
"""Of the loopback network: Ray takes 127.0.0.1 for the name of whatever address the machine has."""


@contextlib.contextmanager
def local_nodes(settings: NodesSettings, run: str) -> Iterator[None]:
    """This process is on the first of the nodes. Nothing is left of them afterwards, nor of the run's slabs."""
    cluster = RayCluster()
    # A Unix socket's path has 107 bytes at most.
    directory = tempfile.mkdtemp(prefix="omni-rl-")
    try:
        for number in range(settings.count):
            cluster.add_node(
                node_ip_address=_address(number),
                num_cpus=settings.cpus,
                object_store_memory=settings.object_store,
                include_dashboard=False,
                temp_dir=directory,
            )
        ray.init(
            address=cluster.address,
            _node_ip_address=_address(0),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(directory, ignore_errors=True)
        # The memory of a host that was lost goes with it; here it is this machine's.
        for left in abandoned(SHARED_MEMORY):
            if left.name.startswith(slab_directory(run).name):
                shutil.rmtree(left, ignore_errors=True)


def _address(number: int) -> str:
    return f"127.0.0.{FIRST_HOST + number}"
