"""The lock of the one live coordinator of something: it ends with the process that holds it."""

import os
import socket

import sqlalchemy as sa
from blake3 import blake3

from omni_rl.errors import CoordinatorRunningError, LedgerError
from omni_rl.ledger.database import Database
from omni_rl.locks import FileLock, LockHeldError, pid_of, wait_for_the_dead

APPLICATION = "omni-rl coordinator "
"""The beginning of the name by which PostgreSQL knows the session that holds a lock; the process and its host
follow."""
_HOLDER = """
SELECT activity.application_name FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid)
WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (held.classid::bigint << 32 | held.objid::bigint) = :key
"""


class CoordinatorLock:
    """A lock on a file beside SQLite's, or a session's advisory lock in PostgreSQL. If the lock is lost, fencing
    prevents harm."""

    def __init__(self, database: Database, name: str, does: str, *, force: bool = False) -> None:
        """Take the lock of this name. `does` says what its holder does, in the error of whoever is refused.

        With `force`, another process may hold the lock, and be stopped. A holder that was just killed is waited for.

        Raises:
            CoordinatorRunningError: without `force`, another process holds the lock.
        """
        self._database, self._does, self._force = database, does, force
        self._file: FileLock | None = None
        self._session: sa.Connection | None = None
        try:
            if database.is_sqlite:
                self._take_file(name)
            else:
                self._take_session(name)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Release the lock. May be called again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._session is not None:
            self._session.invalidate()  # the lock is the session's: it must not go back to a pool
            self._session.close()
            self._session = None

    def _take_file(self, name: str) -> None:
        file = self._database.file
        assert file is not None
        path = file.with_name(f"{file.name}.{blake3(name.encode()).hexdigest()[:16]}.lock")
        try:
            self._file = FileLock(path)
            try:
                self._file.take(str(os.getpid()))
            except LockHeldError as error:
                if not self._force:
                    raise self._running(error.holder) from None
                self._file.write(str(os.getpid()))
        except OSError as error:
            raise LedgerError(f"the lock {path} cannot be used: {error.strerror}") from error

    def _take_session(self, name: str) -> None:
        database = self._database
        key = {"key": int.from_bytes(blake3(name.encode()).digest()[:8], "big", signed=True)}
        with database.reported("locked"):
            self._session = session = database.session(f"{APPLICATION}{os.getpid()} on {socket.gethostname()}")

            def attempt() -> bool:
                return bool(session.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), key).scalar_one())

            def holder() -> str:
                return (session.execute(sa.text(_HOLDER), key).scalar() or "").removeprefix(APPLICATION)

            if not wait_for_the_dead(attempt, lambda: _pid_here(holder())) and not self._force:
                raise self._running(holder())

    def _running(self, holder: str) -> CoordinatorRunningError:
        return CoordinatorRunningError(
            f"process {holder or 'unknown'} {self._does} in {self._database.name} and still runs; end it first"
        )


def _pid_here(holder: str) -> int | None:
    """Return the holder's process id if it is a process of this machine, else None."""
    host = holder.partition(" on ")[2]  # PostgreSQL cuts long names of applications off
    return pid_of(holder) if host and socket.gethostname().startswith(host) else None
