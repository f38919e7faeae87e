"""The ledger: writes return futures that are done when the disk has them, reads are snapshots."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omni_rl.kinds import OVERALL
from omni_rl.ledger import changes, queries, timeline, updates
from omni_rl.ledger.changes import PartContent, Retention
from omni_rl.ledger.database import Database
from omni_rl.ledger.migrations import upgrade
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.syncs import one_sync, syncs_before
from omni_rl.ledger.types import (
    Alarm,
    Event,
    KeptCheck,
    NewAlarm,
    NewEvent,
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

    def close(self) -> None:
        """Write what waits, and let go of the database. Idempotent."""
        self.writer.close()
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

    def put_state(self, run: str, state: Any, events: Iterable[NewEvent] = ()) -> "Future[None]":
        """What the run's policy carries from here on, with the events that tell why, or neither."""
        return self.writer.submit(lambda connection: changes.put_state(connection, run, state, events))

    def put_part(self, key: StepKey, rank: int, records: StepRecords) -> "Future[Stored]":
        """One rank's records of a step. `NotFoundError`: no such run. `ConflictError`: others are there, or the step
        is sealed."""
        part = PartContent(records.digest, len(records), records.tokens, records.payload)
        return self.writer.submit(lambda connection: changes.put_part(connection, key, rank, part))

    def seal(self, step: NewStep) -> "Future[Stored]":
        """Close a step with its figures, samples, verdict, policy, events and alarm: all of it or none.

        `NotFoundError`: it has no parts. `ConflictError`: a part came after those that were judged.
        """
        return self.writer.submit(lambda connection: changes.seal(connection, step, self._retention))

    def add_training(self, key: StepKey, training: Mapping[str, float | None]) -> "Future[None]":
        """What a sealed step's trainer found later. `NotFoundError`: it is not sealed."""
        return self.writer.submit(lambda connection: changes.add_training(connection, key, training))

    def add_event(self, kind: str, data: Mapping[str, Any], run: str | None = None) -> "Future[int]":
        """Its number."""
        event = NewEvent(kind, data, run)
        return self.writer.submit(lambda connection: changes.add_events(connection, [event])[0])

    def open_alarm(self, run: str, alarm: NewAlarm, key: StepKey | None = None) -> "Future[int]":
        """Its number."""
        return self.writer.submit(lambda connection: changes.open_alarm(connection, run, alarm, key))

    def close_alarms(self, run: str, action: str = "", but: Collection[int] = ()) -> "Future[int]":
        """Close a run's open alarms, but those of these numbers, saying what was done; how many there were."""
        return self.writer.submit(lambda connection: changes.close_alarms(connection, run, action, but))

    def add_check(self, found: Mapping[str, Any], key: StepKey | None = None) -> "Future[KeptCheck]":
        """Keep what a check of a step, or without one of the probe, has found."""
        return self.writer.submit(lambda connection: changes.add_check(connection, found, key, self._retention))

    def put_update(self, new: NewUpdate) -> "Future[list[int]]":
        """Keep what was told of an update of weights, with its alarms, whose numbers it gives. `ConflictError`: other
        content is there."""
        return self.writer.submit(lambda connection: updates.put(connection, new))

    def change_update(self, new: NewUpdate) -> "Future[list[int]]":
        """Answers, alarms and events of an update that is kept already, whatever was told of it."""
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

    def alarms(self, run: str, *, limit: int = 100, still_open: bool = False) -> list[Alarm]:
        """Newest first."""
        with self.database.read() as connection:
            return queries.alarms_of(connection, run, limit, still_open=still_open)

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
