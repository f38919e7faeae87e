"""What the drivers of actors share: how long Ray may take, and whether a process runs, is stopped, or is gone."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Literal

PLACEMENT_TIMEOUT = 120.0
"""Seconds for Ray to start a process; on a full cluster it would wait for ever and say nothing."""
EXIT_TIMEOUT = 10.0
"""Seconds for a killed process to be gone."""

STOPPED_AFTER = 2.0
"""Seconds for which a process must be seen stopped. A debugger or a container's freezer stops one for moments."""
SILENT_AFTER = 20.0
"""Seconds without an answer to a ping after which a process of another machine counts as stopped. Its answering thread
needs Python's lock, which a busy process may hold for seconds."""

_PR_SET_PDEATHSIG = 1
Life = Literal["runs", "stopped", "gone"]


def ended(pid: int) -> None:
    """Wait until a process of this machine that was told to end is gone. Kill it if it is stopped, and so cannot hear
    it, or does not end within `EXIT_TIMEOUT`."""
    if life(pid) != "stopped":
        wait_until_gone([pid])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until_gone([pid])


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until_gone(pids: Collection[int]) -> None:
    """Return when none of these processes of this machine runs any more, or after `EXIT_TIMEOUT`."""
    deadline = time.monotonic() + EXIT_TIMEOUT
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)


def life(pid: int) -> Life:
    """Return what the kernel says of a process of this machine: a stopped one exists and executes nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    # The name in parentheses may hold anything, parentheses too.
    state = stat.rpartition(")")[2].split()[0]
    return {"T": "stopped", "t": "stopped", "Z": "gone", "X": "gone"}.get(state, "runs")  # type: ignore[return-value]


class StopClock:
    """Measures for how long a process of this machine has been seen stopped."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._since: float | None = None

    def seconds(self) -> float | None:
        """Look at the process, and return the seconds since the first of the latest looks that all saw it stopped; None
        if it is not stopped now."""
        if life(self._pid) != "stopped":
            self._since = None
            return None
        now = time.monotonic()
        self._since = self._since or now
        return now - self._since


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
