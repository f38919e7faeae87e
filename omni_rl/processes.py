"""What the drivers of actors share: how long Ray may take, and whether a process runs, is stopped, or is gone."""

import contextlib
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Literal

PLACEMENT_TIMEOUT = 120.0
"""Seconds for Ray to start a process; on a full cluster it would wait for ever, without a word."""
EXIT_TIMEOUT = 10.0
"""Seconds for a killed process to be gone."""

Life = Literal["runs", "stopped", "gone"]


def ended(pid: int) -> None:
    """Wait until a process of this machine that was told to end is gone; one that cannot hear it is killed."""
    if life(pid) != "stopped":
        wait_until_gone([pid])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until_gone([pid])


def wait_until_gone(pids: Collection[int]) -> None:
    """Return when none of these processes of this machine runs any more, or after `EXIT_TIMEOUT`."""
    deadline = time.monotonic() + EXIT_TIMEOUT
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)


def life(pid: int) -> Life:
    """What the kernel says of a process of this machine: a stopped one exists and executes nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    # The name in parentheses may hold anything, parentheses too.
    state = stat.rpartition(")")[2].split()[0]
    return {"T": "stopped", "t": "stopped", "Z": "gone", "X": "gone"}.get(state, "runs")  # type: ignore[return-value]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
