"""What the drivers of actors share: how long Ray may take to start a process, and a killed one to be gone."""

import os
import time
from collections.abc import Collection

PLACEMENT_TIMEOUT = 120.0
"""Seconds for Ray to start a process; on a full cluster it would wait for ever, without a word."""
EXIT_TIMEOUT = 10.0
"""Seconds for a killed process to be gone."""


def wait_until_gone(pids: Collection[int]) -> None:
    """Return when none of these processes of this machine runs any more, or after `EXIT_TIMEOUT`."""
    deadline = time.monotonic() + EXIT_TIMEOUT
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
