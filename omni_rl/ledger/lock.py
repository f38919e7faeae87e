"""One live coordinator a run: a lock that ends with the process that holds it."""

import os
import socket

import sqlalchemy as sa
from blake3 import blake3

from omni_rl.errors import CoordinatorRunningError, LedgerError
from omni_rl.ledger.database import Database
from omni_rl.locks import FileLock, LockHeldError, pid_of, wait_for_the_dead

APPLICATION = "omni-rl coordinator "
"""Before the process and its host in the name by which PostgreSQL knows the session that holds a lock."""
_HOLDER = """
SELECT activity.application_name FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid)
WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (held.classid::bigint << 32 | held.objid::bigint) = :key
"""


class CoordinatorLock:
    """A file's lock beside SQLite, a session's advisory lock in PostgreSQL. Fencing makes it safe if it is lost."""

    def __init__(self, database: Database, run: str, *, force: bool) -> None:
        """Raises `CoordinatorRunningError` if another holds it, unless `force`. One that was just killed is waited
        for."""
        self._file: FileLock | None = None
        self._session: sa.Connection | None = None
        try:
            if database.is_sqlite:
                self._take_file(database, run, force)
            else:
                self._take_session(database, run, force)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._session is not None:
            self._session.invalidate()  # the lock is the session's: it must not go back to a pool
            self._session.close()
            self._session = None

    def _take_file(self, database: Database, run: str, force: bool) -> None:
        file = database.file
        assert file is not None
        path = file.with_name(f"{file.name}.{blake3(run.encode()).hexdigest()[:16]}.lock")
        try:
            self._file = FileLock(path)
            try:
                self._file.take(str(os.getpid()))
            except LockHeldError as error:
                if not force:
                    raise _running(run, database, error.holder) from None
                self._file.write(str(os.getpid()))
        except OSError as error:
            raise LedgerError(f"the lock {path} cannot be used: {error.strerror}") from error

    def _take_session(self, database: Database, run: str, force: bool) -> None:
        key = {"key": int.from_bytes(blake3(run.encode()).digest()[:8], "big", signed=True)}
        with database.reported("locked"):
            self._session = session = database.session(f"{APPLICATION}{os.getpid()} on {socket.gethostname()}")

            def attempt() -> bool:
                return bool(session.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), key).scalar_one())

            def holder() -> str:
                return (session.execute(sa.text(_HOLDER), key).scalar() or "").removeprefix(APPLICATION)

            if not wait_for_the_dead(attempt, lambda: _pid_here(holder())) and not force:
                raise _running(run, database, holder())


def _pid_here(holder: str) -> int | None:
    """The holder's process, if it is one of this machine."""
    host = holder.partition(" on ")[2]  # PostgreSQL cuts long names of applications off
    return pid_of(holder) if host and socket.gethostname().startswith(host) else None


def _running(run: str, database: Database, holder: str) -> CoordinatorRunningError:
    return CoordinatorRunningError(
        f"process {holder or 'unknown'} coordinates the syncs of {run} in {database.name} and still runs; end it "
        "first, or take over with force=True if it is stopped"
    )
