"""Locks of the kernel on files (flock): each ends with the processes that hold it, and its file names the holder."""

import fcntl
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from omni_rl.processes import life

RELEASE_SECONDS = 2.0
"""How long a process that was killed may hold its lock: until its last thread is gone."""
LINE_BYTES = 200


class LockHeldError(Exception):
    """Somebody else has the lock. `holder` is the line that the holder wrote, "" if there is none yet.

    Whoever asked for the lock turns this into an error that says what the lock is for.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"held by {holder or 'an unknown process'}")
        self.holder = holder


class FileLock:
    """One open lock file. Nothing is locked until `take` or `share`; `close` releases, as does the process's end.

    A child that is forked while the lock is held holds it too; one that is executed does not.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or create it, for its owner alone. Raises `OSError`."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, line: str) -> None:
        """Hold the lock alone, and write `line`, which begins with this process's id, into the file.

        Raises:
            LockHeldError: another process holds the lock; one that was just killed is waited for.
            OSError: the line cannot be written.
        """
        if not wait_for_the_dead(lambda: _locked(self._descriptor, fcntl.LOCK_EX), lambda: pid_of(self.holder())):
            raise LockHeldError(self.holder())
        self.write(line)

    def share(self) -> None:
        """Hold the lock with others who share it; whoever holds it alone so downgrades it.

        The downgrade is not atomic: who comes between gets the lock, and this process the error.

        Raises:
            LockHeldError: a process holds the lock alone.
        """
        if not _locked(self._descriptor, fcntl.LOCK_SH):
            raise LockHeldError(self.holder())

    def write(self, line: str) -> None:
        """Name the holder. Raises `OSError`, of a full file system say."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, line.encode(), 0)

    def holder(self) -> str:
        """The line of whoever took the lock last, "" if nobody has."""
        return os.pread(self._descriptor, LINE_BYTES, 0).decode()

    def close(self) -> None:
        os.close(self._descriptor)


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock of the file alone. Raises `OSError` if there is no such file, or no right to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def wait_for_the_dead(attempt: Callable[[], bool], holder: Callable[[], int | None]) -> bool:
    """Make `attempt` until it succeeds, as long as its holder is a process of this machine that is gone.

    The kernel lets go of a killed process's locks and sockets only when its last thread has ended, which may be after
    its parent has heard of its end. Returns False if the holder lives, is unknown, or stays for `RELEASE_SECONDS`.
    """
    deadline = time.monotonic() + RELEASE_SECONDS
    while not attempt():
        pid = holder()
        if pid is None or life(pid) != "gone" or time.monotonic() > deadline:
            return False
        time.sleep(RELEASE_SECONDS / 100)
    return True


def pid_of(line: str) -> int | None:
    """The process's id that a holder's line begins with; None if it begins with no number."""
    digits = re.match(r"\d+", line)
    return int(digits[0]) if digits else None


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
