"""The reports of weight updates in the ledger: every answer, and the newest of the reports that the answers were made
from."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa
from blake3 import blake3

from omni_rl.errors import ConflictError
from omni_rl.ledger import incidents
from omni_rl.ledger.events import add_events
from omni_rl.ledger.tables import updates
from omni_rl.ledger.types import NewEvent, NewIncident

TOLD_KEPT = 4
"""How many of the newest rows of an engine's worker have the report that they were made from; of the trainer's also as
many as an engine may be behind (`NewUpdate.reports`)."""
ROWS_KEPT = 10_000
"""How many of a run's newest rows stay."""


class UpdateKey(NamedTuple):
    """The key of one worker's report of an engine's update; `engine` is empty for the trainer's own."""

    run: str
    engine: str
    session: str
    number: int
    worker: int


@dataclass(frozen=True)
class StoredReport:
    """A report (JSON) as it is stored. It is compressed before the write begins, since megabytes take a while, for
    which other writes need not wait."""

    digest: str
    deflated: bytes

    @classmethod
    def of(cls, body: bytes) -> "StoredReport":
        """Return the stored form of a report; the same content has the same digest."""
        return cls(blake3(body).hexdigest(), zlib.compress(body, 1))


@dataclass(frozen=True)
class NewUpdate:
    """A change to the updates. `told` is the report, None where the row is there already. `over` says, by number, why
    incidents end with it; `seen` are those that it opens, or lets grow. `reports` is how many of the newest reports of
    this engine's worker, or of the trainer, stay stored. With `gone`, no report stays of an engine that has reported
    nothing since the trainer's `gone` updates before this one."""

    key: UpdateKey
    told: StoredReport | None
    answer: Mapping[str, Any]
    over: Mapping[int, str] = field(default_factory=dict)
    seen: Sequence[NewIncident] = ()
    events: Sequence[NewEvent] = ()
    reports: int = TOLD_KEPT
    gone: int | None = None


@dataclass(frozen=True)
class KeptUpdate:
    """A stored update, without its report."""

    key: UpdateKey
    digest: str
    answer: Mapping[str, Any]


def put(connection: sa.Connection, new: NewUpdate) -> list[int]:
    """Store an update with its incidents and events, or none of them; return the numbers of the incidents in `seen`.

    Raises `ConflictError` if another report is stored under the same key.
    """
    assert new.told is not None, "a new row is of what was told"
    here = _is(new.key)
    known = connection.execute(sa.select(updates.c.digest).where(here)).scalar()
    if known is None:
        row = {**new.key._asdict(), "digest": new.told.digest, "told": new.told.deflated, "answer": new.answer}
        connection.execute(sa.insert(updates).values(row))
        _forget(connection, new)
    elif known != new.told.digest:
        raise ConflictError(f"update {new.key.number} of worker {new.key.worker} was told of with other content")
    return change(connection, new)


def change(connection: sa.Connection, new: NewUpdate) -> list[int]:
    """Write the answer, incidents and events of `new`, and return the numbers of the incidents in `seen`."""
    connection.execute(sa.update(updates).where(_is(new.key)).values(answer=new.answer))
    for number, why in new.over.items():
        incidents.end_one(connection, number, why)
    add_events(connection, new.events)
    return [incidents.see(connection, new.key.run, seen) for seen in new.seen]


def one(connection: sa.Connection, key: UpdateKey) -> KeptUpdate | None:
    """Return the update of a key, or None if there is none."""
    row = connection.execute(sa.select(*_ROW).where(_is(key))).first()
    return None if row is None else _kept(row)


def newest(connection: sa.Connection, run: str, *, limit: int = 100) -> list[KeptUpdate]:
    """Return a run's updates, the newest first."""
    wanted = sa.select(*_ROW).where(updates.c.run == run)
    return [_kept(row) for row in connection.execute(wanted.order_by(updates.c.id.desc()).limit(limit))]


def remembered(connection: sa.Connection, run: str) -> list[KeptUpdate]:
    """Return a run's updates whose reports are still stored, and the first update of each start of its trainer, oldest
    first."""
    starts = sa.select(sa.func.min(updates.c.id)).where(_trainer(run)).group_by(updates.c.session)
    remembered = sa.or_(updates.c.told.is_not(None), updates.c.id.in_(starts))
    wanted = sa.select(*_ROW).where(updates.c.run == run, remembered)
    return [_kept(row) for row in connection.execute(wanted.order_by(updates.c.id))]


def told(connection: sa.Connection, key: UpdateKey) -> bytes | None:
    """Return the report of an update, or None if it was dropped."""
    deflated = connection.execute(sa.select(updates.c.told).where(_is(key))).scalar()
    return None if deflated is None else zlib.decompress(deflated)


_ROW = tuple(column for column in updates.c if column is not updates.c.told)


def _is(key: UpdateKey) -> sa.ColumnElement[bool]:
    return sa.and_(*(updates.c[name] == value for name, value in key._asdict().items()))


def _trainer(run: str) -> sa.ColumnElement[bool]:
    return sa.and_(updates.c.run == run, updates.c.engine == "")


def _kept(row: Any) -> KeptUpdate:
    key = UpdateKey(row.run, row.engine, row.session, row.number, row.worker)
    return KeptUpdate(key, row.digest, row.answer)


def _forget(connection: sa.Connection, new: NewUpdate) -> None:
    """Drop the reports and the rows that this row makes too old."""
    key = new.key
    own = sa.and_(updates.c.run == key.run, updates.c.engine == key.engine, updates.c.worker == key.worker)
    old = sa.select(updates.c.id).where(own).order_by(updates.c.id.desc()).offset(new.reports).limit(1)
    if (number := connection.execute(old).scalar()) is not None:
        connection.execute(sa.update(updates).where(own, updates.c.id <= number).values(told=None))
    if new.gone is not None:
        _forget_gone(connection, key.run, new.gone)
    ids = sa.select(updates.c.id).where(updates.c.run == key.run).order_by(updates.c.id.desc())
    if (number := connection.execute(ids.offset(ROWS_KEPT).limit(1)).scalar()) is not None:
        connection.execute(sa.delete(updates).where(updates.c.run == key.run, updates.c.id <= number))


def _forget_gone(connection: sa.Connection, run: str, gone: int) -> None:
    """Drop the reports of engines that have reported nothing since the trainer's `gone` updates before its newest."""
    since = sa.select(updates.c.id).where(_trainer(run)).order_by(updates.c.id.desc()).offset(gone).limit(1)
    if (number := connection.execute(since).scalar()) is None:
        return
    reporting = sa.select(updates.c.engine).where(updates.c.run == run, updates.c.id > number)
    silent = sa.and_(updates.c.run == run, updates.c.told.is_not(None), updates.c.engine.not_in(reporting))
    connection.execute(sa.update(updates).where(silent).values(told=None))
