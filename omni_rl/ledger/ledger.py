"""The ledger: writes return futures that are done when the data is on the disk, and reads are snapshots."""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import Connection

from omni_rl.closing import Closing
from omni_rl.described import described
from omni_rl.errors import LedgerError
from omni_rl.ledger import changes, incidents, queries, run_list, timeline, updates
from omni_rl.ledger.changes import PartContent
from omni_rl.ledger.database import Database
from omni_rl.ledger.events import add_events
from omni_rl.ledger.migrations import upgrade
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.syncs import one_sync, syncs_before
from omni_rl.ledger.term import Term
from omni_rl.ledger.types import NewEvent, StepKey, Stored
from omni_rl.ledger.writer import Writer

P = ParamSpec("P")
T = TypeVar("T")
LEAST_FREE = 2**20
"""The fewest free bytes that the disk of an SQLite ledger must have: about what one step takes."""


def _writes(change: Callable[Concatenate[Connection, P], T]) -> "Callable[Concatenate[Ledger, P], Future[T]]":
    def method(ledger: "Ledger", /, *arguments: P.args, **options: P.kwargs) -> "Future[T]":
        return ledger.writer.submit(lambda connection: change(connection, *arguments, **options))

    return described(method, change, first=1)


def _reads(query: Callable[Concatenate[Connection, P], T]) -> "Callable[Concatenate[Ledger, P], T]":
    def method(ledger: "Ledger", /, *arguments: P.args, **options: P.kwargs) -> T:
        with ledger.database.read() as connection:
            return query(connection, *arguments, **options)

    return described(method, query, first=1)


class Ledger(Closing):
    """A ledger. Any thread may call it; asyncio code awaits `asyncio.wrap_future` of a write.

    Writes go through one thread, several in one transaction: many small ones share the disk's flush. Every method may
    raise `LedgerError` (of a write: its future), and errors that are named for a write are its future's.
    """

    def __init__(self, database: Database) -> None:
        """Make a ledger of a database whose tables are there; `open` makes them."""
        self.database = database
        self.writer = Writer(database)
        self._term: Term | None = None

    @classmethod
    def open(cls, url: str) -> Self:
        """Open sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE, and make or migrate its tables.

        Raises:
            ConfigError: the URL is another one.
            LedgerVersionError: a newer omni-rl wrote the ledger.
        """
        database = Database(url)
        try:
            upgrade(database)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def take(self) -> None:
        """Make this process the one coordinator of the ledger: from here on no other process's writes count, and once
        another takes the ledger over, none of this one's. May be called again.

        Raises:
            CoordinatorRunningError: another process is the ledger's coordinator.
        """
        if self._term is None:
            self._term = Term(self.database)
            self.writer.check = self._term.check

    def ready(self) -> None:
        """Raise `LedgerError` where nothing can be read or written, and `TakenOverError` where another coordinator has
        taken the ledger over."""
        with self.database.read() as connection:
            if self._term is not None:
                self._term.check(connection)
        self._require_room()
        if self._term is not None and (refusal := self.writer.refusal) is not None:
            if refusal.is_fresh:
                raise LedgerError(refusal.reason)
            self.writer.submit(self._term.write_again).result()

    def _require_room(self) -> None:
        """Raise `LedgerError` if the disk is nearly full: a service that writes nothing would not notice otherwise."""
        if self.file is not None and (free := shutil.disk_usage(self.file.parent).free) < LEAST_FREE:
            raise LedgerError(f"the disk of {self.file} has {free} bytes left, too few to write; free some room there")

    def close(self) -> None:
        """Write what waits, and close the database. May be called again."""
        self.writer.close()
        if self._term is not None:
            self._term.close()
        self.database.close()

    @property
    def file(self) -> Path | None:
        """SQLite's file, or None for PostgreSQL."""
        return self.database.file

    put_run = _writes(changes.put_run)
    put_state = _writes(changes.put_state)
    seal = _writes(changes.seal)
    add_training = _writes(changes.add_training)
    add_check = _writes(changes.add_check)
    see_incident = _writes(incidents.see)
    end_incidents = _writes(incidents.end)
    end_incident = _writes(incidents.end_one)
    acknowledge = _writes(incidents.acknowledge)
    add_note = _writes(incidents.add_note)
    incident_told = _writes(incidents.told)
    put_update = _writes(updates.put)
    change_update = _writes(updates.change)

    update = _reads(updates.one)
    remembered_updates = _reads(updates.remembered)
    told_update = _reads(updates.told)
    updates = _reads(updates.newest)
    listed = _reads(run_list.listed)
    one_listed = _reads(run_list.one_listed)
    needs = _reads(run_list.needs)
    overdue = _reads(run_list.overdue)
    to_remember = _reads(run_list.to_remember)
    attempts = _reads(queries.attempts_of)
    run = _reads(queries.one_run)
    parts = _reads(queries.parts_of)
    records = _reads(queries.records_of)
    step = _reads(queries.one_step)
    steps = _reads(queries.steps_after)
    steps_spread = _reads(queries.steps_spread)
    timeline = _reads(timeline.read)
    sample = _reads(queries.one_sample)
    events = _reads(queries.events_after)
    last_event = _reads(queries.last_event)
    incident = _reads(incidents.one)
    incidents_since = _reads(incidents.changed_since)
    open_severities = _reads(incidents.open_severities)
    runs_with_open = _reads(incidents.runs_with_open)
    incidents = _reads(incidents.some)
    check = _reads(queries.one_check)
    checks = _reads(queries.newest_checks)
    sync = _reads(one_sync)
    syncs = _reads(syncs_before)

    def put_part(
        self,
        key: StepKey,
        rank: int,
        records: StepRecords,
        fits: Callable[[int, int], None] = lambda tokens, size: None,
    ) -> "Future[Stored]":
        """Store one rank's records of a step. `fits` is called with the tokens and the bytes that the step then has; if
        it raises, the records are not stored. `NotFoundError`: there is no such run. `ConflictError`: the rank has
        posted others, or the step is sealed."""
        part = PartContent(records.digest, len(records), records.tokens, records.payload)
        return self.writer.submit(lambda connection: changes.put_part(connection, key, rank, part, fits))

    def add_event(self, kind: str, data: Mapping[str, Any], run: str | None = None) -> "Future[int]":
        """Write an event; the future gives its number."""
        event = NewEvent(kind, data, run)
        return self.writer.submit(lambda connection: add_events(connection, [event])[0])
