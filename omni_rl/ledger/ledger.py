"""The ledger: writes return futures that are done when the disk has them, reads are snapshots."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omni_rl.consistency.need import Need
from omni_rl.kinds import OVERALL
from omni_rl.ledger import changes, incidents, queries, run_list, timeline, updates
from omni_rl.ledger.changes import PartContent, Retention
from omni_rl.ledger.database import Database
from omni_rl.ledger.events import add_events
from omni_rl.ledger.migrations import upgrade
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.run_list import Listed, Wanted
from omni_rl.ledger.syncs import one_sync, syncs_before
from omni_rl.ledger.term import Term
from omni_rl.ledger.types import (
    Attempt,
    Event,
    Incident,
    IncidentEnd,
    KeptCheck,
    NewEvent,
    NewIncident,
    NewState,
    NewStep,
    Part,
    Run,
    Sample,
    Step,
    StepKey,
    StepRow,
    Stored,
    Sync,
    Timeline,
)
from omni_rl.ledger.updates import KeptUpdate, NewUpdate, UpdateKey
from omni_rl.ledger.writer import Writer


class Ledger:
    """Any thread may call; asyncio code awaits `asyncio.wrap_future` of a write.

    Writes go through one thread, several in one transaction: many small ones share the disk's flush. Every method may
    raise `LedgerError` (of a write: its future).
    """

    def __init__(self, database: Database, retention: Retention) -> None:
        """Use `open`."""
        self.database = database
        self.writer = Writer(database)
        self._retention = retention
        self._term: Term | None = None

    @classmethod
    def open(cls, url: str, *, retention: Retention | None = None) -> Self:
        """Open sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE, and make or migrate its tables.

        Raises:
            ConfigError: another URL.
            LedgerVersionError: a newer omni-rl wrote it.
        """
        database = Database(url)
        try:
            upgrade(database)
        except BaseException:
            database.close()
            raise
        return cls(database, retention or Retention())

    def take(self) -> None:
        """Be the one coordinator of this ledger: from here on nobody else's writes count, and if ever another takes it
        over, none of this one's. Idempotent.

        Raises:
            CoordinatorRunningError: another process keeps it.
        """
        if self._term is None:
            self._term = Term(self.database)
            self.writer.check = self._term.check

    def ready(self) -> None:
        """Raises `LedgerError` where nothing can be read, `TakenOverError` where another coordinator keeps it now."""
        with self.database.read() as connection:
            if self._term is not None:
                self._term.check(connection)

    def close(self) -> None:
        """Write what waits, and let go of the database. Idempotent."""
        self.writer.close()
        if self._term is not None:
            self._term.close()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def file(self) -> Path | None:
        """SQLite's file."""
        return self.database.file

    def put_run(self, run: str, config: Mapping[str, Any]) -> "Future[Stored]":
        """Register a run; the same again is "same". `ConflictError`: another `config` under its name."""
        return self.writer.submit(lambda connection: changes.put_run(connection, run, config))

    def put_state(self, run: str, new: NewState) -> "Future[None]":
        """What the run's policy carries from here on, with what tells why: all of it or none."""
        return self.writer.submit(lambda connection: changes.put_state(connection, run, new))

    def put_part(self, key: StepKey, rank: int, records: StepRecords) -> "Future[Stored]":
        """One rank's records of a step. `NotFoundError`: no such run. `ConflictError`: others are there, or the step
        is sealed."""
        part = PartContent(records.digest, len(records), records.tokens, records.payload)
        return self.writer.submit(lambda connection: changes.put_part(connection, key, rank, part))

    def seal(self, step: NewStep) -> "Future[Stored]":
        """Close a step with its figures, samples, verdict, policy, events and incident: all of it or none.

        `NotFoundError`: it has no parts. `ConflictError`: a part came after those that were judged.
        """
        return self.writer.submit(lambda connection: changes.seal(connection, step, self._retention))

    def add_training(self, key: StepKey, training: Mapping[str, float | None]) -> "Future[None]":
        """What a sealed step's trainer found later. `NotFoundError`: it is not sealed."""
        return self.writer.submit(lambda connection: changes.add_training(connection, key, training))

    def add_event(self, kind: str, data: Mapping[str, Any], run: str | None = None) -> "Future[int]":
        """Its number."""
        event = NewEvent(kind, data, run)
        return self.writer.submit(lambda connection: add_events(connection, [event])[0])

    def see_incident(self, run: str | None, new: NewIncident, key: StepKey | None = None) -> "Future[int]":
        """Open an incident, or let the open one of its run, kind and subject grow; its number."""
        return self.writer.submit(lambda connection: incidents.see(connection, run, new, key))

    def end_incidents(self, run: str | None, over: IncidentEnd) -> "Future[None]":
        """End those of a run that are open, of a kind and perhaps of one subject."""
        return self.writer.submit(lambda connection: incidents.end(connection, run, over))

    def end_incident(self, number: int, why: str) -> "Future[Incident]":
        """`NotFoundError`: there is none of that number. One that is over stays as it is."""
        return self.writer.submit(lambda connection: incidents.end_one(connection, number, why))

    def acknowledge(self, number: int, by: str) -> "Future[Incident]":
        """`NotFoundError`: there is none of that number. `ConflictError`: it is over, or somebody else has it."""
        return self.writer.submit(lambda connection: incidents.acknowledge(connection, number, by))

    def add_note(self, number: int, by: str, text: str) -> "Future[Incident]":
        """`NotFoundError`: there is none of that number. `ConflictError`: it takes no more."""
        return self.writer.submit(lambda connection: incidents.add_note(connection, number, by, text))

    def incident_told(self, number: int, webhook: str, state: str) -> "Future[None]":
        """Remember what a webhook was told of an incident."""
        return self.writer.submit(lambda connection: incidents.told(connection, number, webhook, state))

    def add_check(self, found: Mapping[str, Any], key: StepKey | None = None) -> "Future[KeptCheck]":
        """Keep what a check of a step, or without one of the probe, has found."""
        return self.writer.submit(lambda connection: changes.add_check(connection, found, key, self._retention))

    def put_update(self, new: NewUpdate) -> "Future[list[int]]":
        """Keep what was told of an update of weights, with its incidents, whose numbers it gives. `ConflictError`:
        other content is there."""
        return self.writer.submit(lambda connection: updates.put(connection, new))

    def change_update(self, new: NewUpdate) -> "Future[list[int]]":
        """Answers, incidents and events of an update that is kept already, whatever was told of it."""
        return self.writer.submit(lambda connection: updates.change(connection, new))

    def update(self, key: UpdateKey) -> KeptUpdate | None:
        """What was told of an update; None if nothing was."""
        with self.database.read() as connection:
            return updates.one(connection, key)

    def updates(self, run: str, *, limit: int = 100) -> list[KeptUpdate]:
        """Newest first, without what was told."""
        with self.database.read() as connection:
            return updates.newest(connection, run, limit)

    def remembered_updates(self, run: str) -> list[KeptUpdate]:
        """Those that still have what was told, oldest first."""
        with self.database.read() as connection:
            return updates.remembered(connection, run)

    def listed(self, wanted: Wanted) -> tuple[list[Listed], int]:
        """The runs of a page, and how many there are on all pages."""
        with self.database.read() as connection:
            return run_list.listed(connection, wanted)

    def one_listed(self, run: str, unseen: Collection[str] = ()) -> Listed:
        """Raises `NotFoundError`."""
        with self.database.read() as connection:
            return run_list.one_listed(connection, run, unseen)

    def needs(self, unseen: Collection[str] = ()) -> dict[Need, int]:
        """How many runs there are of each need."""
        with self.database.read() as connection:
            return run_list.needs(connection, unseen)

    def overdue(self, now: float, limit: int) -> list[str]:
        """Runs that were due to be silent before `now`."""
        with self.database.read() as connection:
            return run_list.overdue(connection, now, limit)

    def to_remember(self, limit: int) -> list[Run]:
        """The newest runs, and those where something is under way; oldest first."""
        with self.database.read() as connection:
            names = dict.fromkeys((*run_list.under_way(connection), *run_list.newest(connection, limit)))
            found = [queries.one_run(connection, name) for name in names]
        return sorted(found, key=lambda run: (run.created, run.run))

    def attempts(self, run: str) -> list[Attempt]:
        """The starts of a run, oldest first."""
        with self.database.read() as connection:
            return queries.attempts_of(connection, run)

    def runs(self) -> list[Run]:
        """Oldest first."""
        with self.database.read() as connection:
            return queries.all_runs(connection)

    def run(self, run: str) -> Run:
        """Raises `NotFoundError`, as the methods below do for what is not there."""
        with self.database.read() as connection:
            return queries.one_run(connection, run)

    def parts(self, key: StepKey) -> list[Part]:
        """What was posted for a step, by rank."""
        with self.database.read() as connection:
            return queries.parts_of(connection, key)

    def records(self, key: StepKey) -> dict[int, StepRecords]:
        """The records of every rank of a step that is open, or was sealed not long ago."""
        with self.database.read() as connection:
            return queries.records_of(connection, key)

    def steps(self, run: str, attempt: int, *, after: int = -1, limit: int = 1000) -> list[StepRow]:
        """Sealed steps with numbers above `after`, in order."""
        with self.database.read() as connection:
            return queries.steps_after(connection, run, attempt, after, limit)

    def timeline(
        self,
        run: str,
        attempt: int,
        figures: Sequence[str],
        *,
        kind: str = OVERALL,
        first: int | None = None,
        last: int | None = None,
        points: int = 1000,
    ) -> Timeline:
        """Figures over the steps `first` to `last` in at most `points` buckets, without losing an extreme."""
        with self.database.read() as connection:
            identity = queries.attempt_id(connection, run, attempt)
            return timeline.read(connection, identity, kind, figures, first, last, points)

    def step(self, key: StepKey) -> Step:
        with self.database.read() as connection:
            return queries.one_step(connection, key)

    def sample(self, key: StepKey, sample: str, rank: int | None = None) -> Sample:
        with self.database.read() as connection:
            return queries.one_sample(connection, key, sample, rank)

    def events(self, *, after: int = 0, limit: int = 1000, run: str | None = None) -> list[Event]:
        """Events with numbers above `after`, in order."""
        with self.database.read() as connection:
            return queries.events_after(connection, after, limit, run)

    def last_event(self) -> int:
        """The newest event's number; 0 before the first."""
        with self.database.read() as connection:
            return queries.last_event(connection)

    def incident(self, number: int) -> Incident:
        with self.database.read() as connection:
            return incidents.one(connection, number)

    def incidents(
        self,
        *,
        still_open: bool | None = None,
        run: str | None = None,
        kind: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Incident]:
        """Newest first: all, or those that are open (or not), of a run, of a kind, with numbers below `before`."""
        with self.database.read() as connection:
            return incidents.some(connection, still_open=still_open, run=run, kind=kind, before=before, limit=limit)

    def incidents_since(self, at: float) -> list[Incident]:
        """Those that are open, and those that ended at `at` or later; oldest first."""
        with self.database.read() as connection:
            return incidents.changed_since(connection, at)

    def checks(
        self, *, limit: int = 100, run: str | None = None, attempt: int | None = None, step: int | None = None
    ) -> list[KeptCheck]:
        """Newest first: all of them, or those about steps of a run, an attempt, or about one step."""
        with self.database.read() as connection:
            return queries.newest_checks(connection, limit, run, attempt, step)

    def check(self, number: int) -> KeptCheck:
        with self.database.read() as connection:
            return queries.one_check(connection, number)

    def syncs(self, *, before: int | None = None, limit: int = 100, run: str | None = None) -> list[Sync]:
        """Newest first, those with numbers below `before`; transitions come with one sync alone."""
        with self.database.read() as connection:
            return syncs_before(connection, before, limit, run)

    def sync(self, sync: str) -> Sync:
        """One sync with its transitions."""
        with self.database.read() as connection:
            return one_sync(connection, sync)
