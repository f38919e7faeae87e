"""Who may write a slab: one group of processes at a time, and nobody waits for a dead one."""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from omni_rl.errors import SlabBusyError, SlabError, SlabFullError


class WriterLock:
    """A lock of the kernel (flock) on the file `path`: it ends with the processes that hold it.

    The first of a group takes it, which fails while anybody of an earlier group still holds it; the others join with
    the ticket that it got. Everybody of a group holds it shared, so that it is free only when all have released it:
    a straggler of a dead source never writes over its successor. Do not fork while holding it: the child holds it too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> str:
        """Become the first writer; returns the group's ticket.

        Raises `SlabBusyError` if there is a living one, `SlabFullError` if the file system has no room for a line.
        """
        descriptor = self._open()
        ticket = f"{os.getpid()}:{uuid.uuid4().hex}"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, ticket.encode(), 0)
            # Not atomic: who comes between the two gets the lock, and this process the error.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._busy(descriptor) from error
        except OSError as error:
            os.close(descriptor)
            raise SlabFullError(f"{self._path} cannot be written: {error}; free some room there") from error
        self._descriptor = descriptor
        return ticket

    def join(self, ticket: str) -> None:
        """Become another writer of the group. Raises `SlabBusyError` if another group has taken the lock since."""
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._busy(descriptor) from error
        if _holder(descriptor) != ticket:
            raise self._busy(descriptor)
        self._descriptor = descriptor

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Nobody takes the lock meanwhile. Raises `SlabBusyError` if somebody is about to."""
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._busy(descriptor) from error
        try:
            yield
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is not None:
            raise SlabBusyError(f"{self._path.stem} is being written by this very process; finish that first")
        try:
            return os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SlabError(f"{self._path} cannot be opened: {error}") from error

    def _busy(self, descriptor: int) -> SlabBusyError:
        holder = _holder(descriptor).partition(":")[0] or "unknown"
        os.close(descriptor)
        return SlabBusyError(
            f"{self._path.with_suffix('')} is being written by another source (process {holder}); "
            "wait until it has finished, or end it"
        )


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 100, 0).decode()
