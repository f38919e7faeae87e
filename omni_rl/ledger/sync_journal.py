"""The journal of weight syncs in the ledger: what must outlive a coordinator, beside the steps that depend on it."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from omni_rl.errors import FencedError, JournalError, LedgerError
from omni_rl.ledger.changes import insert_new
from omni_rl.ledger.events import add_events
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.lock import CoordinatorLock
from omni_rl.ledger.syncs import committed, one_record, records
from omni_rl.ledger.tables import decisions, fence, syncs, transitions
from omni_rl.ledger.types import NewEvent
from omni_rl.sync.journal import SyncRecord
from omni_rl.sync.replica import InFlight, SlabRef
from omni_rl.sync.states import Decision, SyncEvent

T = TypeVar("T")
# Built once: generation stands still while a sync is decided.
_EPOCH = sa.select(fence.c.epoch).where(fence.c.run == sa.bindparam("run"))
_DECISION = sa.select(decisions.c.decision).where(decisions.c.sync == sa.bindparam("sync"))
log = logging.getLogger(__name__)


class LedgerJournal:
    """The `omni_rl.sync.journal.Journal` of one run's weights. The ledger stays its opener's: closing the journal does
    not close it.

    A live coordinator holds a lock on the run; see `force`. Other runs' journals in the same ledger are apart. Any
    thread may call.
    """

    def __init__(self, ledger: Ledger, run: str, *, force: bool = False) -> None:
        """Open the run's journal. `force` takes the run from a coordinator that still runs (one that is stopped, say);
        fencing makes that safe. A coordinator that was stopped in the middle of a write keeps a SQLite file locked
        until it goes on or is ended; PostgreSQL closes its connection.

        Raises:
            CoordinatorRunningError: without `force`, another live process coordinates the run's syncs.
            JournalError: the ledger cannot be used.
        """
        self._ledger = ledger
        self._run = run
        with _reported():
            self._lock = CoordinatorLock(ledger.database, run, f"coordinates the syncs of {run}", force=force)

    def next_epoch(self, held: int | None) -> int:
        def operation(connection: sa.Connection) -> int:
            if held is not None:
                self._refuse_fenced(connection, held, "a new epoch")
            insert_new(connection, fence, {"run": self._run, "epoch": 0})
            raised = sa.update(fence).where(fence.c.run == self._run).values(epoch=fence.c.epoch + 1)
            return int(connection.execute(raised.returning(fence.c.epoch)).scalar_one())

        return self._write(operation)

    def begin(self, sync: str, key: str | None, epoch: int, slab: str, mode: InFlight) -> None:
        def operation(connection: sa.Connection) -> None:
            self._refuse_fenced(connection, epoch, f"sync {sync}")
            previous = committed(connection, self._run)
            connection.execute(
                sa.insert(syncs).values(
                    run=self._run,
                    sync=sync,
                    key=key,
                    epoch=epoch,
                    slab=slab,
                    version="",
                    previous_slab=previous.path if previous else None,
                    previous_version=previous.version if previous else None,
                    mode=mode,
                    started=time.time(),
                )
            )

        self._write(operation)

    def prepared(self, sync: str, epoch: int, version: str) -> None:
        def operation(connection: sa.Connection) -> None:
            self._refuse_fenced(connection, epoch, f"the version of sync {sync}")
            connection.execute(sa.update(syncs).where(syncs.c.sync == sync).values(version=version))

        self._write(operation)

    def decide(self, sync: str, epoch: int, decision: Decision) -> Decision:
        def operation(connection: sa.Connection) -> Decision:
            self._refuse_fenced(connection, epoch, f"the decision of sync {sync}")
            insert_new(connection, decisions, {"sync": sync, "decision": decision, "epoch": epoch, "at": time.time()})
            stands: Decision = connection.execute(_DECISION, {"sync": sync}).scalar_one()
            return stands

        return self._write(operation)

    def finish(self, sync: str, epoch: int, result: Mapping[str, Any]) -> None:
        def operation(connection: sa.Connection) -> None:
            self._refuse_fenced(connection, epoch, f"the result of sync {sync}")
            changed = sa.update(syncs).where(syncs.c.sync == sync).values(finished=time.time(), result=result)
            connection.execute(changed)

        self._write(operation)

    def unfinished(self) -> SyncRecord | None:
        return self._read(
            lambda connection: next(iter(records(connection, self._run, 1, syncs.c.finished.is_(None))), None)
        )

    def by_key(self, key: str) -> SyncRecord | None:
        return self._read(lambda connection: next(iter(records(connection, self._run, 1, syncs.c.key == key)), None))

    def record(self, sync: str) -> SyncRecord | None:
        return self._read(lambda connection: one_record(connection, sync))

    def records(self, limit: int) -> list[SyncRecord]:
        return self._read(lambda connection: records(connection, self._run, limit))

    def committed(self) -> SlabRef | None:
        return self._read(lambda connection: committed(connection, self._run))

    def observe(self, event: SyncEvent) -> None:
        """Write what happened in a sync, with an event for those who follow them; this is an `Observer`. Nobody waits
        for the write, because generation may stand still meanwhile; what cannot be written is logged."""

        def operation(connection: sa.Connection) -> None:
            values = {
                "sync": event.sync,
                "phase": str(event.phase),
                "what": event.what,
                "replica": event.replica,
                "detail": event.detail,
            }
            connection.execute(sa.insert(transitions).values(**values, at=now))
            add_events(connection, [NewEvent("sync", values, self._run)])

        now = time.time()
        try:
            self._ledger.writer.submit(operation).add_done_callback(_log_failure)
        except LedgerError as error:
            log.warning("sync %s: %s was not kept: %s", event.sync, event.phase, error)

    def close(self) -> None:
        """Release the run, so that another coordinator may take it. The ledger stays open."""
        self._lock.release()

    def _refuse_fenced(self, connection: sa.Connection, epoch: int, what: str) -> None:
        # Nobody else writes during this transaction (see `Database.write`), so what is read here still holds when it
        # commits.
        newest = connection.execute(_EPOCH, {"run": self._run}).scalar() or 0
        if epoch < newest:
            raise FencedError(f"{what}: this coordinator has epoch {epoch}, a newer one took over with {newest}")

    def _write(self, operation: Callable[[sa.Connection], T]) -> T:
        with _reported():
            return self._ledger.writer.submit(operation).result()

    def _read(self, query: Callable[[sa.Connection], T]) -> T:
        with _reported(), self._ledger.database.read() as connection:
            return query(connection)


@contextmanager
def opened_journal(ledger: Path | str, run: str, *, force: bool = False) -> Iterator[LedgerJournal]:
    """Yield the journal of `run` in a ledger, a SQLite file or a URL, which is opened for it and closed with the block.

    Raises:
        CoordinatorRunningError: without `force`, another live process coordinates the run's syncs.
        JournalError: the ledger cannot be used.
    """
    url = f"sqlite:///{ledger}" if isinstance(ledger, Path) else ledger
    with _reported():
        opened = Ledger.open(url)
    with opened, closing(LedgerJournal(opened, run, force=force)) as journal:
        yield journal


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except LedgerError as error:
        raise JournalError(str(error)) from error


def _log_failure(done: "Future[None]") -> None:
    if error := done.exception():
        log.warning("a sync's transition was not kept: %s", error)
