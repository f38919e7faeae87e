"""What was told of updates of weights, in the ledger: every answer, and the newest of what it was made from."""

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
"""The newest rows of an engine's worker, or of the trainer, that keep what they were made from."""
ROWS_KEPT = 10_000
"""Of a run."""


class UpdateKey(NamedTuple):
    """An engine's update as one worker told of it; `engine` is empty for the trainer's own."""

    run: str
    engine: str
    session: str
    number: int
    worker: int


@dataclass(frozen=True)
class NewUpdate:
    """`told`: the JSON that came. `also`: answers to other rows that changed with it. `over`: why incidents end with
    it, by their numbers; `seen`: those that it opens, or lets grow."""

    key: UpdateKey
    told: bytes
    answer: Mapping[str, Any]
    also: Mapping[UpdateKey, Mapping[str, Any]]
    over: Mapping[int, str] = field(default_factory=dict)
    seen: Sequence[NewIncident] = ()
    events: Sequence[NewEvent] = ()


@dataclass(frozen=True)
class KeptUpdate:
    """A row. `told` is None where it was dropped."""

    key: UpdateKey
    digest: str
    told: bytes | None
    answer: Mapping[str, Any]


def digest_of(told: bytes) -> str:
    """By which the same content is known again."""
    return blake3(told).hexdigest()


def put(connection: sa.Connection, new: NewUpdate) -> list[int]:
    """Keep an update with its incidents and events, or with none of them; returns the numbers of what was seen.

    Raises `ConflictError` if something else was told under the same key.
    """
    here = _is(new.key)
    known = connection.execute(sa.select(updates.c.digest).where(here)).scalar()
    if known is None:
        told = zlib.compress(new.told, 1)
        row = {**new.key._asdict(), "digest": digest_of(new.told), "told": told, "answer": new.answer}
        connection.execute(sa.insert(updates).values(row))
        _forget(connection, new.key)
    elif known != digest_of(new.told):
        raise ConflictError(f"update {new.key.number} of worker {new.key.worker} was told of with other content")
    return change(connection, new)


def change(connection: sa.Connection, new: NewUpdate) -> list[int]:
    """The answers, incidents and events of `new` alone."""
    for key, answer in {**new.also, new.key: new.answer}.items():
        connection.execute(sa.update(updates).where(_is(key)).values(answer=answer))
    for number, why in new.over.items():
        incidents.end_one(connection, number, why)
    add_events(connection, new.events)
    return [incidents.see(connection, new.key.run, seen) for seen in new.seen]


def one(connection: sa.Connection, key: UpdateKey) -> KeptUpdate | None:
    """The row of a key; None if there is none."""
    row = connection.execute(sa.select(updates).where(_is(key))).first()
    return None if row is None else _kept(row)


def newest(connection: sa.Connection, run: str, limit: int) -> list[KeptUpdate]:
    """A run's rows, the newest first, without what was told."""
    columns = [column for column in updates.c if column is not updates.c.told]
    wanted = sa.select(*columns, sa.null().label("told")).where(updates.c.run == run)
    return [_kept(row) for row in connection.execute(wanted.order_by(updates.c.id.desc()).limit(limit))]


def remembered(connection: sa.Connection, run: str) -> list[KeptUpdate]:
    """A run's rows that still have what was told, oldest first."""
    wanted = sa.select(updates).where(updates.c.run == run, updates.c.told.is_not(None))
    return [_kept(row) for row in connection.execute(wanted.order_by(updates.c.id))]


def _is(key: UpdateKey) -> sa.ColumnElement[bool]:
    return sa.and_(*(updates.c[name] == value for name, value in key._asdict().items()))


def _kept(row: Any) -> KeptUpdate:
    key = UpdateKey(row.run, row.engine, row.session, row.number, row.worker)
    return KeptUpdate(key, row.digest, None if row.told is None else zlib.decompress(row.told), row.answer)


def _forget(connection: sa.Connection, key: UpdateKey) -> None:
    """Drop what this row makes too old."""
    own = sa.and_(updates.c.run == key.run, updates.c.engine == key.engine, updates.c.worker == key.worker)
    old = sa.select(updates.c.id).where(own).order_by(updates.c.id.desc()).offset(TOLD_KEPT).limit(1)
    if (number := connection.execute(old).scalar()) is not None:
        connection.execute(sa.update(updates).where(own, updates.c.id <= number).values(told=None))
    ids = sa.select(updates.c.id).where(updates.c.run == key.run).order_by(updates.c.id.desc())
    if (number := connection.execute(ids.offset(ROWS_KEPT).limit(1)).scalar()) is not None:
        connection.execute(sa.delete(updates).where(updates.c.run == key.run, updates.c.id <= number))
