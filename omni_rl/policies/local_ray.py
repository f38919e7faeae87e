"""Starts a Ray of this process's own: one node, or several on this machine which stand for as many hosts."""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator

import ray
from ray.cluster_utils import Cluster as RayCluster

from omni_rl.policies.settings import NodesSettings
from omni_rl.sync.ownership import SHARED_MEMORY, abandoned
from omni_rl.sync.slabs import ON_HOST, slab_directory

FIRST_HOST = 2
"""The last number of the first node's loopback address. It is not 1, because Ray takes 127.0.0.1 for the name of
whatever address the machine has."""
OBJECT_STORE_BYTES = 256 * 2**20
"""The size of the object store, which has room for a step's media tensors and one set of weights."""


@contextlib.contextmanager
def local_ray(nodes: NodesSettings, run: str) -> Iterator[None]:
    """Start a Ray cluster for the context, never using one that already runs.

    Nothing is left of it afterwards, nor, with several nodes, of the run's slabs.
    """
    with _one_node() if nodes.count == 1 else _several_nodes(nodes, run):
        yield


@contextlib.contextmanager
def _one_node() -> Iterator[None]:
    """Start one node without a dashboard; the output of actors is only in its log files."""
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _several_nodes(nodes: NodesSettings, run: str) -> Iterator[None]:
    """Start several nodes; this process is on the first of them."""
    cluster = RayCluster()
    # A Unix socket's path has 107 bytes at most.
    directory = tempfile.mkdtemp(prefix="omni-rl-")
    try:
        for number in range(nodes.count):
            cluster.add_node(
                node_ip_address=_address(number),
                num_cpus=nodes.cpus,
                object_store_memory=nodes.object_store,
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
        own = slab_directory(run).name
        for left in abandoned(SHARED_MEMORY):
            if left.name == own or left.name.startswith(f"{own}{ON_HOST}"):
                shutil.rmtree(left, ignore_errors=True)


def _address(number: int) -> str:
    return f"127.0.0.{FIRST_HOST + number}"
