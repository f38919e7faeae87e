"""Chooses ports for servers that start later."""

import secrets
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
FIRST = 20000
"""The least port that is chosen. Ray gives its workers those below."""
TRIES = 100
GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Has the least and the greatest port that the system gives to connections."""


def free_port() -> int:
    """Return a port of this machine at which nothing listens.

    It is none of those that the system gives to connections, if there are others: seconds go by before Ray's processes
    listen, and one of them, the agent that takes jobs, says nothing if it cannot.
    """
    kept_back = range(FIRST, int(GIVEN_OUT.read_text().split()[0]))
    for port in secrets.SystemRandom().sample(kept_back, min(TRIES, len(kept_back))):
        try:
            return _listened_at(port)
        except OSError:
            continue
    return _listened_at(0)


def _listened_at(port: int) -> int:
    """Listen at a port for a moment, 0 for any, and return it. Raises `OSError` if somebody else does."""
    with socket.create_server((LOOPBACK, port)) as server:
        found: int = server.getsockname()[1]
        return found
