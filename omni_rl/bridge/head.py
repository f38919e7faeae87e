"""Asks whether Ray's own processes answer: a stopped one takes connections, and says nothing."""

import grpc  # type: ignore[import-untyped]
import ray
from ray._private.grpc_utils import init_grpc_channel

HEALTH = "/grpc.health.v1.Health/Check"
"""The health service of gRPC, which Ray's head and raylets have without a token. An empty message asks about the whole
process; the answer's bytes say whether it serves, which no process of Ray's ever denies."""
PROBE_SECONDS = 2.0
"""The seconds for a process to answer."""


def serves(address: str) -> bool:
    """Return whether the process of Ray's at host:port answers that it is well."""
    with init_grpc_channel(address, (("grpc.enable_http_proxy", 0),)) as channel:
        check = channel.unary_unary(HEALTH)
        try:
            check(b"", timeout=PROBE_SECONDS)
        except grpc.RpcError:
            return False
    return True


def own_raylet() -> str:
    """Return the address of the raylet that this process is connected to."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
