"""What must outlive a coordinator: the fencing epoch, the sync under way, and the row that decides it."""

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omni_rl.errors import CoordinatorRunningError, FencedError, JournalError
from omni_rl.processes import life
from omni_rl.sync.replica import InFlight, SlabRef
from omni_rl.sync.states import Decision

RELEASE_SECONDS = 2.0
"""How long a process that was killed may hold its lock: until its last thread is gone."""


@dataclass(frozen=True)
class SyncRecord:
    """One sync as the journal knows it.

    `slab` is where the new weights go, with version "" until they are there. `decision` None: nothing is decided.
    `finished` (Unix seconds) None: not every replica is accounted for. `result` is what the caller was, or would have
    been, told.
    """

    sync: str
    key: str | None
    epoch: int
    slab: SlabRef
    previous: SlabRef | None
    mode: InFlight
    started: float
    decision: Decision | None
    finished: float | None
    result: Mapping[str, Any] | None


class Journal(Protocol):
    """Every method that returns has made its change durable. Raises `JournalError`, and `FencedError` where a newer
    coordinator took over."""

    def next_epoch(self, held: int | None) -> int:
        """A new epoch, higher than any before; from now on what comes with an older one is refused.

        A coordinator names the epoch it holds, and is refused if a newer one took over; None takes over."""

    def begin(self, sync: str, key: str | None, epoch: int, slab: str, mode: InFlight) -> None:
        """A sync starts; its `previous` is what is committed now."""

    def prepared(self, sync: str, epoch: int, version: str) -> None:
        """The new weights lie sealed in the sync's slab."""

    def decide(self, sync: str, epoch: int, decision: Decision) -> Decision:
        """Write the row that decides for all replicas. The first one stands: returns what is decided."""

    def finish(self, sync: str, epoch: int, result: Mapping[str, Any]) -> None:
        """Every replica is accounted for: it has the decided weights, or it samples nothing."""

    def unfinished(self) -> SyncRecord | None: ...
    def by_key(self, key: str) -> SyncRecord | None: ...
    def record(self, sync: str) -> SyncRecord | None: ...
    def records(self, limit: int) -> list[SyncRecord]:
        """Newest first."""

    def committed(self) -> SlabRef | None:
        """The weights that every replica has to have: those of the newest sync decided with "commit"."""


_SCHEMA = """
CREATE TABLE IF NOT EXISTS fence (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL);
INSERT OR IGNORE INTO fence VALUES (1, 0);
CREATE TABLE IF NOT EXISTS syncs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sync TEXT NOT NULL UNIQUE,
    key TEXT UNIQUE,
    epoch INTEGER NOT NULL,
    slab TEXT NOT NULL,
    version TEXT NOT NULL DEFAULT '',
    previous_slab TEXT,
    previous_version TEXT,
    mode TEXT NOT NULL,
    started REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS decisions (
    sync TEXT PRIMARY KEY REFERENCES syncs (sync),
    decision TEXT NOT NULL CHECK (decision IN ('commit', 'abort')),
    epoch INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS results (
    sync TEXT PRIMARY KEY REFERENCES syncs (sync),
    finished REAL NOT NULL,
    result TEXT NOT NULL
);
"""
_SELECT = """
SELECT s.sync, s.key, s.epoch, s.slab, s.version, s.previous_slab, s.previous_version, s.mode, s.started,
       d.decision, r.finished, r.result
FROM syncs s LEFT JOIN decisions d ON d.sync = s.sync LEFT JOIN results r ON r.sync = s.sync
"""


class SqliteJournal:
    """`Journal` in one SQLite file. A live coordinator holds a lock on it; see `force`."""

    def __init__(self, path: Path, *, force: bool = False) -> None:
        """Open or create the journal.

        `force` takes it from a coordinator that still runs (one that is stopped, say); fencing makes that safe.
        Raises `CoordinatorRunningError` without it, `JournalError` if the file cannot be used.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(f"the journal {path} cannot be opened: {error.strerror}") from error
        self._turn = threading.RLock()  # whoever asks for the state reads beside the thread that runs a sync
        try:
            self._claim(force)
            with self._reported("opened"):
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(_SCHEMA)
        except BaseException:
            os.close(self._lock)
            raise

    def next_epoch(self, held: int | None) -> int:
        with self._write("a new epoch") as db:
            if held is not None:
                self._refuse_fenced(db, held, "a new epoch")
            (epoch,) = db.execute("UPDATE fence SET epoch = epoch + 1 RETURNING epoch").fetchone()
        return int(epoch)

    def begin(self, sync: str, key: str | None, epoch: int, slab: str, mode: InFlight) -> None:
        previous = self.committed()
        with self._write(f"the beginning of sync {sync}") as db:
            self._refuse_fenced(db, epoch, f"sync {sync}")
            db.execute(
                "INSERT INTO syncs (sync, key, epoch, slab, previous_slab, previous_version, mode, started) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    sync,
                    key,
                    epoch,
                    slab,
                    previous.path if previous else None,
                    previous.version if previous else None,
                    mode,
                    time.time(),
                ),
            )

    def prepared(self, sync: str, epoch: int, version: str) -> None:
        with self._write(f"the version of sync {sync}") as db:
            self._refuse_fenced(db, epoch, f"the version of sync {sync}")
            db.execute("UPDATE syncs SET version = ? WHERE sync = ?", (version, sync))

    def decide(self, sync: str, epoch: int, decision: Decision) -> Decision:
        with self._write(f"the decision of sync {sync}") as db:
            self._refuse_fenced(db, epoch, f"the decision of sync {sync}")
            db.execute("INSERT OR IGNORE INTO decisions VALUES (?, ?, ?)", (sync, decision, epoch))
            (decided,) = db.execute("SELECT decision FROM decisions WHERE sync = ?", (sync,)).fetchone()
        result: Decision = decided
        return result

    def finish(self, sync: str, epoch: int, result: Mapping[str, Any]) -> None:
        with self._write(f"the result of sync {sync}") as db:
            self._refuse_fenced(db, epoch, f"the result of sync {sync}")
            db.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (sync, time.time(), json.dumps(result)))

    def unfinished(self) -> SyncRecord | None:
        return self._one("WHERE r.sync IS NULL ORDER BY s.number DESC LIMIT 1")

    def by_key(self, key: str) -> SyncRecord | None:
        return self._one("WHERE s.key = ?", key)

    def record(self, sync: str) -> SyncRecord | None:
        return self._one("WHERE s.sync = ?", sync)

    def records(self, limit: int) -> list[SyncRecord]:
        return self._select("ORDER BY s.number DESC LIMIT ?", limit)

    def committed(self) -> SlabRef | None:
        record = self._one("WHERE d.decision = 'commit' ORDER BY s.number DESC LIMIT 1")
        return record.slab if record else None

    def close(self) -> None:
        """Let go of the file; another coordinator may open it."""
        self._db.close()
        os.close(self._lock)

    def _claim(self, force: bool) -> None:
        deadline = time.monotonic() + RELEASE_SECONDS
        while not self._try_lock():
            owner = os.pread(self._lock, 32, 0).decode()
            if owner and life(int(owner)) == "gone" and time.monotonic() < deadline:
                time.sleep(RELEASE_SECONDS / 100)
            elif force:
                break
            else:
                raise CoordinatorRunningError(
                    f"process {owner or 'unknown'} coordinates the syncs of {self.path} and still runs; end it first, "
                    "or take over with force=True if it is stopped"
                )
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _refuse_fenced(self, db: sqlite3.Connection, epoch: int, what: str) -> None:
        (newest,) = db.execute("SELECT epoch FROM fence").fetchone()
        if epoch < newest:
            raise FencedError(f"{what}: this coordinator has epoch {epoch}, a newer one took over with {newest}")

    def _one(self, where: str, *values: Any) -> SyncRecord | None:
        return next(iter(self._select(where, *values)), None)

    def _select(self, where: str, *values: Any) -> list[SyncRecord]:
        with self._turn, self._reported("read"):
            return [_record(row) for row in self._db.execute(_SELECT + where, values)]

    @contextmanager
    def _write(self, what: str) -> Iterator[sqlite3.Connection]:
        """One transaction; what it wrote is on the disk afterwards, or nothing of it counts."""
        with self._turn, self._reported(f"written ({what})"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self.path} cannot be {what}: {error}") from error


def _record(row: tuple[Any, ...]) -> SyncRecord:
    sync, key, epoch, slab, version, previous_slab, previous_version, mode, started, decision, finished, result = row
    return SyncRecord(
        sync=sync,
        key=key,
        epoch=epoch,
        slab=SlabRef(slab, version),
        previous=SlabRef(previous_slab, previous_version) if previous_slab is not None else None,
        mode=mode,
        started=started,
        decision=decision,
        finished=finished,
        result=json.loads(result) if result is not None else None,
    )
