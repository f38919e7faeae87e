"""Locks on files that the kernel holds (flock): a lock ends with the processes that hold it, and its file names the
holder."""

import fcntl
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from omni_rl.processes import life

RELEASE_SECONDS = 2.0
"""Seconds for which a process that was killed may still hold its lock: until its last thread is gone."""
LINE_BYTES = 200


class LockHeldError(Exception):
    """Another process has the lock. `holder` is the line that the holder wrote, "" if it has written none yet.

    Whoever asked for the lock turns this into an error that says what the lock is for.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"held by {holder or 'an unknown process'}")
        self.holder = holder


class FileLock:
    """One open lock file. It is not locked until `take` or `share`; `close` and the process's end release the lock.

    A child that is forked while the lock is held holds it too; one that is executed does not.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or create it, readable and writable by its owner alone. Raises `OSError`."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, line: str) -> None:
        """Hold the lock alone, and write `line`, which begins with this process's id, into the file. A holder that was
        just killed is waited for.

        Raises:
            LockHeldError: another process holds the lock.
            OSError: the line cannot be written.
        """
        if not wait_for_the_dead(lambda: _locked(self._descriptor, fcntl.LOCK_EX), lambda: pid_of(self.holder())):
            raise LockHeldError(self.holder())
        self.write(line)

    def share(self) -> None:
        """Hold the lock with others who share it. A process that holds the lock alone then no longer holds it alone.

        The kernel does not do that in one step: a process that asks in between may get the lock, and this one the
        error.

        Raises:
            LockHeldError: a process holds the lock alone.
        """
        if not _locked(self._descriptor, fcntl.LOCK_SH):
            raise LockHeldError(self.holder())

    def write(self, line: str) -> None:
        """Write the holder's line into the file. Raises `OSError`, for instance if the file system is full."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, line.encode(), 0)

    def holder(self) -> str:
        """Return the line of whoever took the lock last, "" if nobody has."""
        return os.pread(self._descriptor, LINE_BYTES, 0).decode()

    def close(self) -> None:
        os.close(self._descriptor)


def is_free(path: Path) -> bool:
    """Return whether no process holds the file's lock alone. Raises `OSError` if the file is absent or may not be
    read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def wait_for_the_dead(attempt: Callable[[], bool], holder: Callable[[], int | None]) -> bool:
    """Repeat `attempt` until it succeeds, as long as the lock's `holder` is a process of this machine that is gone.

    The kernel lets go of a killed process's locks and sockets only when its last thread has ended, which may be after
    its parent has heard of its end. Returns False if the holder lives, is unknown, or still holds the lock after
    `RELEASE_SECONDS`.
    """
    deadline = time.monotonic() + RELEASE_SECONDS
    while not attempt():
        pid = holder()
        if pid is None or life(pid) != "gone" or time.monotonic() > deadline:
            return False
        time.sleep(RELEASE_SECONDS / 100)
    return True


def pid_of(line: str) -> int | None:
    """Return the process id that a holder's line begins with, or None if the line begins with no number."""
    digits = re.match(r"\d+", line)
    return int(digits[0]) if digits else None


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
