"""Locks a slab for writing: one group of processes at a time may write, and nobody waits for a dead one."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from omni_rl.errors import SlabBusyError, SlabError, SlabFullError
from omni_rl.locks import FileLock, LockHeldError, pid_of


class WriterLock:
    """A kernel lock on the file `path`: it ends with the processes that hold it.

    The first process of a group takes it, which fails while any process of an earlier group still holds it; the others
    join with the ticket that the first got. All processes of a group hold it shared, so that it is free only when each
    has released it: a straggler of a dead source never writes over its successor. Do not fork while holding it: the
    child holds it too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: FileLock | None = None

    def take(self) -> str:
        """Become the first writer, and return the group's ticket.

        Raises `SlabBusyError` if there is a living writer, `SlabFullError` if the file system has no room for a line.
        """
        ticket = f"{os.getpid()}:{uuid.uuid4().hex}"
        with self._opened() as lock:
            try:
                lock.take(ticket)
                lock.share()
            except OSError as error:
                raise SlabFullError(f"{self._path} cannot be written: {error}; free some room there") from error
            self._held = lock
        return ticket

    def join(self, ticket: str) -> None:
        """Become another writer of the group. Raises `SlabBusyError` if another group has taken the lock since."""
        with self._opened() as lock:
            lock.share()
            if lock.holder() != ticket:
                raise LockHeldError(lock.holder())
            self._held = lock

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Keep others from taking the lock inside the context. Raises `SlabBusyError` if another process is about to
        take it."""
        with self._opened() as lock:
            lock.share()
            yield

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if self._held is not None:
            self._held.close()
            self._held = None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[FileLock]:
        """Open the file, and close it at the end unless it is held by then. Raises `SlabBusyError` if another process
        has it."""
        if self._held is not None:
            raise SlabBusyError(f"{self._path.stem} is being written by this very process; finish that first")
        try:
            lock = FileLock(self._path)
        except OSError as error:
            raise SlabError(f"{self._path} cannot be opened: {error}") from error
        try:
            yield lock
        except LockHeldError as error:
            raise SlabBusyError(
                f"{self._path.with_suffix('')} is being written by another source (process "
                f"{pid_of(error.holder) or 'unknown'}); wait until it has finished, or end it"
            ) from error
        finally:
            if self._held is not lock:
                lock.close()
