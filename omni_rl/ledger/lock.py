"""One live coordinator a run: a lock that ends with the process that holds it."""

import fcntl
import os

import sqlalchemy as sa
from blake3 import blake3

from omni_rl.errors import CoordinatorRunningError, LedgerError
from omni_rl.ledger.database import Database


class CoordinatorLock:
    """A file's lock beside SQLite, a session's advisory lock in PostgreSQL. Fencing makes it safe if it is lost."""

    def __init__(self, database: Database, run: str, *, force: bool) -> None:
        """Raises `CoordinatorRunningError` if another holds it, unless `force`."""
        self._descriptor: int | None = None
        self._session: sa.Connection | None = None
        if database.is_sqlite:
            self._take_file(database, run, force)
        else:
            self._take_session(database, run, force)

    def release(self) -> None:
        """Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._session is not None:
            self._session.invalidate()  # the lock is the session's: it must not go back to a pool
            self._session.close()
            self._session = None

    def _take_file(self, database: Database, run: str, force: bool) -> None:
        file = database.file
        assert file is not None
        path = file.with_name(f"{file.name}.{blake3(run.encode()).hexdigest()[:16]}.lock")
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerError(f"the lock {path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not force:
                owner = os.pread(self._descriptor, 32, 0).decode() or "unknown"
                self.release()
                raise _running(run, f"process {owner}") from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def _take_session(self, database: Database, run: str, force: bool) -> None:
        key = int.from_bytes(blake3(run.encode()).digest()[:8], "big", signed=True)
        with database.reported("locked"):
            self._session = database.session()
            if not self._session.exec_driver_sql(f"SELECT pg_try_advisory_lock({key})").scalar_one() and not force:
                self.release()
                raise _running(run, "another process")


def _running(run: str, owner: str) -> CoordinatorRunningError:
    return CoordinatorRunningError(
        f"{owner} coordinates the syncs of {run} and still runs; end it first, or take over with force=True if it is "
        "stopped"
    )
