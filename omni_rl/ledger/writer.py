"""One thread that writes: what waits while one transaction reaches the disk goes into the next one together."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from omni_rl.errors import LedgerError
from omni_rl.ledger.database import Database

GROUP = 256
"""The most operations in one transaction."""
REFUSED_SECONDS = 5.0
"""Seconds for which a refused write is remembered, whatever is written after it: a full disk may take a small one."""
T = TypeVar("T")


@dataclass(frozen=True)
class Refusal:
    """Why the database refused a write, and when, by the monotonic clock."""

    at: float
    reason: str

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self.at < REFUSED_SECONDS


@dataclass
class _Job:
    operation: Callable[[sa.Connection], Any]
    future: "Future[Any]"
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class Writer:
    """Runs operations in the order in which they were submitted, several in one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.check: Callable[[sa.Connection], None] = lambda connection: None
        """Called in every transaction before anything is written; if it raises `LedgerError`, the transaction ends."""
        self.refusal: Refusal | None = None
        """The latest write that the database could not carry out; None once others have gone through for a while."""
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[sa.Connection], T]) -> "Future[T]":
        """Run an operation in the writer's thread. The future is done when what `operation` wrote is on the disk, or
        when none of it counts.

        What the operation itself raises undoes only this operation. A `LedgerError` from the database leaves open
        whether it was written: the connection may have broken after the commit.
        """
        future: Future[T] = Future()
        with self._gate:
            if self._closed:
                raise LedgerError("the ledger is closed")
            self._jobs.put(_Job(operation, future))
        return future

    def close(self) -> None:
        """Write what waits, then end the thread."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while True:
            group, ending = self._next_group()
            if group:
                self._write(group)
                group.clear()  # what was written may be large, and the next may be long in coming
            if ending:
                return

    def _next_group(self) -> tuple[list[_Job], bool]:
        group: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            if job.future.set_running_or_notify_cancel():
                group.append(job)
            if len(group) == GROUP:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _write(self, group: list[_Job], *, again: bool = True) -> None:
        begun = ran = False
        try:
            with self._database.write() as connection:
                self.check(connection)
                begun = True
                for job in group:
                    job.result = job.error = None
                    if len(group) == 1:  # what it raises undoes the transaction: a savepoint takes as long as its work
                        job.result = job.operation(connection)
                    else:
                        self._run(job, connection)
                ran = True
            if self.refusal is not None and not self.refusal.is_fresh:
                self.refusal = None
        except sa.exc.SQLAlchemyError as error:
            lost = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
            unknown = ran and lost
            # A full disk ends a whole transaction: let each stand or fall alone. Where none began, because another
            # process holds the lock or no server answers, each would wait as long again.
            if len(group) > 1 and begun and not unknown:
                for job in group:
                    self._write([job])
                return
            if lost and not ran and again:  # a transaction that was never to be committed: on a new connection
                self._write(group, again=False)
                return
            failure = self._database.failure("written", error)
            # Other errors are about the data, which is its sender's; this one is the disk's or the server's.
            if isinstance(error, sa.exc.OperationalError):
                self.refusal = Refusal(time.monotonic(), str(failure))
            for job in group:
                job.error = failure
        except Exception as error:  # reaches whoever waits for the futures
            for job in group:
                job.error = error
        for job in group:
            job.settle()

    @staticmethod
    def _run(job: _Job, connection: sa.Connection) -> None:
        """Run one operation in a savepoint. A database error leaves this function: SQLite may have ended the
        transaction, and with it the savepoint."""
        savepoint = connection.begin_nested()
        try:
            job.result = job.operation(connection)
            savepoint.commit()
        except sa.exc.SQLAlchemyError:
            raise
        except Exception as error:  # reaches whoever waits for the future
            savepoint.rollback()
            job.error = error
