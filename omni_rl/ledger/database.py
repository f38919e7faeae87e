"""One connection pool for reading and one for writing, on SQLite or PostgreSQL, set up so that a commit is durable."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from omni_rl.errors import ConfigError, LedgerError

LOCK_SECONDS = 5
"""How long a write waits for another process's; below the time for which a sync tries to decide again."""
LOCK_RETRY_SECONDS = 0.01
CONNECT_SECONDS = 5
SILENT_SECONDS = 10
"""A connection whose other end does not acknowledge for so long is given up."""
WRITER_IDLE_SECONDS = LOCK_SECONDS - 1
"""On PostgreSQL: a process that stops in the middle of a write loses its turn before those who wait for it give up."""
STATEMENT_SECONDS = 60
"""On PostgreSQL: a statement that takes longer is given up."""
READERS = 16
PAGE_BYTES = 16384
"""Of a new SQLite file: payloads are long, and pages this size cost a third less to write than the default's."""
WAL_KEPT_BYTES = 64 << 20
WRITERS_LOCK = 0x6F6D6E69
"""Key of the advisory lock that makes PostgreSQL's writers take turns, as SQLite's do: ids are then seen in order."""


class Database:
    """`read()` and `write()` give connections; whatever the database says no to is a `LedgerError`."""

    def __init__(self, url: str) -> None:
        """Raises `ConfigError` for a URL that is neither sqlite:///FILE nor postgresql+psycopg://…."""
        self.url = _parsed(url)
        self.name = self.url.render_as_string(hide_password=True)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._writing, self._reading = _sqlite(self.url, writing=True), _sqlite(self.url, writing=False)
        else:
            self._writing, self._reading = _postgresql(self.url, writing=True), _postgresql(self.url, writing=False)

    @property
    def file(self) -> Path | None:
        """SQLite's file."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None

    @contextmanager
    def read(self, what: str = "read") -> Iterator[sa.Connection]:
        """A snapshot. An error says that the ledger cannot be `what`."""
        with self.reported(what), self._reading.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction, durable when the block has ended; nobody else writes meanwhile. Database errors come as
        SQLAlchemy's."""
        with self._writing.begin() as connection:
            yield connection

    def session(self, application: str) -> sa.Connection:
        """PostgreSQL: a connection of its own, without a transaction, for a lock that is the session's; the server
        shows others who hold it by the name `application`."""
        settings = _connecting() | {"application_name": application}
        engine = sa.create_engine(self.url, poolclass=sa.NullPool, connect_args=settings)
        return engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def reported(self, what: str) -> Iterator[None]:
        """Turns database errors into `LedgerError`."""
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            raise self.failure(what, error) from error

    def failure(self, what: str, error: sa.exc.SQLAlchemyError) -> LedgerError:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        advice = "; another process is in the middle of a write, end it if it is stopped" if _is_busy(cause) else ""
        said = " ".join(str(cause).split())  # libpq's errors have several lines
        return LedgerError(f"the ledger {self.name} cannot be {what}: {said}{advice}")

    def close(self) -> None:
        self._reading.dispose()
        self._writing.dispose()


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigError(f"ledger: {error}") from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in ("sqlite", "postgresql+psycopg"):
        if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise ConfigError("ledger: sqlite needs a file, sqlite:///runs/ledger.db say; nothing in memory is durable")
        return parsed
    raise ConfigError(f"ledger: {parsed.drivername} is neither sqlite nor postgresql+psycopg")


def _sqlite(url: sa.URL, *, writing: bool) -> sa.Engine:
    file = Path(str(url.database))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"the ledger's directory {file.parent} cannot be made: {error.strerror}") from error
    # Records hold prompts and answers. SQLite gives its journals the file's own mode; what else may be wrong with the
    # file, connecting tells.
    with contextlib.suppress(OSError):
        os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    engine = sa.create_engine(
        url, connect_args={"timeout": LOCK_SECONDS}, pool_size=1 if writing else READERS, max_overflow=0
    )

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, record: object) -> None:
        connection.isolation_level = None  # the driver would begin transactions by rules of its own
        settings = [
            f"page_size={PAGE_BYTES}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"journal_size_limit={WAL_KEPT_BYTES}",
        ]
        for setting in settings if writing else ["query_only=ON"]:
            _set(connection, setting)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that starts by reading and then writes would fail, not wait, if another wrote in between.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _set(connection: Any, setting: str) -> None:
    """SQLite fails at once, and does not wait, if another holds the lock while it turns a new file into a WAL one."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            connection.execute(f"PRAGMA {setting}")
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(LOCK_RETRY_SECONDS)


def _is_busy(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _postgresql(url: sa.URL, *, writing: bool) -> sa.Engine:
    engine = sa.create_engine(
        url,
        connect_args=_connecting(WRITER_IDLE_SECONDS if writing else STATEMENT_SECONDS),
        pool_pre_ping=True,
        pool_size=1 if writing else READERS,
        max_overflow=0,
        isolation_level="READ COMMITTED" if writing else "REPEATABLE READ",
    )
    if writing:

        @sa.event.listens_for(engine, "begin")
        def _take_turn(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")

    return engine


def _connecting(idle_seconds: int = STATEMENT_SECONDS) -> dict[str, Any]:
    """`idle_seconds`: how long a transaction may stand still."""
    settings = {
        "synchronous_commit": "on",
        "lock_timeout": f"{LOCK_SECONDS}s",
        "statement_timeout": f"{STATEMENT_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{idle_seconds}s",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": 1000 * SILENT_SECONDS,
        "options": options,
        "application_name": "omni-rl",
    }
