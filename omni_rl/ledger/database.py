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
"""Seconds that a write waits for another process's write; fewer than those for which a sync tries to decide again."""
LOCK_RETRY_SECONDS = 0.01
LOCK_NOT_AVAILABLE = "55P03"
"""PostgreSQL's code for a lock that was waited for too long."""
CONNECT_SECONDS = 5
SILENT_SECONDS = 10
"""Seconds after which a connection whose other end acknowledges nothing is closed."""
WRITER_IDLE_SECONDS = LOCK_SECONDS - 1
"""Seconds, on PostgreSQL, for which a transaction that writes may stand still. A process that stops in the middle of a
write loses the lock before those who wait for it give up."""
STATEMENT_SECONDS = 60
"""Seconds, on PostgreSQL, after which a statement is cancelled."""
READERS = 16
STATEMENTS = 128
"""How many compiled statements stay in memory, some 50 KiB each. There are about a hundred, and more only when clients
ask for figures in ever other combinations."""
PAGE_BYTES = 16384
"""The page size of a new SQLite file: payloads are long, and pages this size cost a third less to write than the
default's."""
WAL_KEPT_BYTES = 64 << 20
WRITERS_LOCK = 0x6F6D6E69
"""The key of the advisory lock that makes PostgreSQL's writers take turns, as SQLite's do: ids then become visible in
order."""


class Database:
    """The database behind a ledger. `read()` and `write()` yield connections; what the database refuses is a
    `LedgerError`."""

    def __init__(self, url: str) -> None:
        """Open the pools. Raises `ConfigError` for a URL that is neither sqlite:///FILE nor postgresql+psycopg://…."""
        self.url = _parsed(url)
        self.name = self.url.render_as_string(hide_password=True)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._writing, self._reading = _sqlite(self.url, writing=True), _sqlite(self.url, writing=False)
        else:
            self._writing, self._reading = _postgresql(self.url, writing=True), _postgresql(self.url, writing=False)

    @property
    def file(self) -> Path | None:
        """SQLite's file, or None for PostgreSQL."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None

    @contextmanager
    def read(self, what: str = "read") -> Iterator[sa.Connection]:
        """Yield a connection that sees one snapshot. A `LedgerError` says that the ledger cannot be `what`."""
        with self.reported(what), self._reading.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Yield a connection with one transaction, durable when the block has ended; nobody else writes meanwhile.
        Database errors leave it as SQLAlchemy's."""
        with self._writing.begin() as connection:
            yield connection

    def session(self, application: str) -> sa.Connection:
        """Return a new PostgreSQL connection without a transaction, for a lock that belongs to the session. The server
        shows others by the name `application` who holds the lock."""
        settings = _connecting() | {"application_name": application}
        engine = sa.create_engine(self.url, poolclass=sa.NullPool, connect_args=settings)
        return engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def reported(self, what: str) -> Iterator[None]:
        """Turn database errors into `LedgerError`, which says that the ledger cannot be `what`."""
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            raise self.failure(what, error) from error

    def failure(self, what: str, error: sa.exc.SQLAlchemyError) -> LedgerError:
        cause = _cause(error)
        advice = "; another process is in the middle of a write, end it if it is stopped" if _is_busy(cause) else ""
        said = " ".join(str(cause).split())  # libpq's errors have several lines
        return LedgerError(f"the ledger {self.name} cannot be {what}: {said}{advice}")

    def close(self) -> None:
        self._reading.dispose()
        self._writing.dispose()


def is_busy(error: sa.exc.SQLAlchemyError) -> bool:
    """Return whether another process's write was waited for in vain."""
    return _is_busy(_cause(error))


def _cause(error: sa.exc.SQLAlchemyError) -> BaseException | None:
    return error.orig if isinstance(error, sa.exc.DBAPIError) else error


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
    # Records hold prompts and answers. SQLite gives its journals the file's own mode. What else may be wrong with the
    # file is reported when a connection opens it.
    with contextlib.suppress(OSError):
        os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    engine = sa.create_engine(
        url,
        connect_args={"timeout": LOCK_SECONDS},
        pool_size=1 if writing else READERS,
        max_overflow=0,
        query_cache_size=STATEMENTS,
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
    """Set a PRAGMA, and retry while the database is locked: SQLite fails at once, and does not wait, if another
    connection holds the lock while this one turns a new file into a WAL one."""
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
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
    return getattr(error, "sqlstate", None) == LOCK_NOT_AVAILABLE


def _postgresql(url: sa.URL, *, writing: bool) -> sa.Engine:
    engine = sa.create_engine(
        url,
        connect_args=_connecting(WRITER_IDLE_SECONDS if writing else STATEMENT_SECONDS),
        pool_pre_ping=True,
        pool_size=1 if writing else READERS,
        max_overflow=0,
        query_cache_size=STATEMENTS,
        isolation_level="READ COMMITTED" if writing else "REPEATABLE READ",
    )
    if writing:

        @sa.event.listens_for(engine, "begin")
        def _take_turn(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")

    return engine


def _connecting(idle_seconds: int = STATEMENT_SECONDS) -> dict[str, Any]:
    """Return the arguments of a PostgreSQL connection. `idle_seconds` is how long a transaction may stand still."""
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
