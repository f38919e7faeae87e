"""Reads the weight syncs of the ledger."""

from typing import Any

import sqlalchemy as sa

from omni_rl.api.syncs import SyncPhase
from omni_rl.errors import NotFoundError
from omni_rl.ledger.tables import decisions, syncs, transitions
from omni_rl.ledger.types import Sync
from omni_rl.sync.journal import SyncRecord
from omni_rl.sync.replica import SlabRef


def records(connection: sa.Connection, run: str, limit: int, *where: sa.ColumnElement[bool]) -> list[SyncRecord]:
    """Return the newest `limit` syncs of a run for which `where` holds, newest first."""
    query = _select().where(syncs.c.run == run, *where).order_by(syncs.c.number.desc()).limit(limit)
    return [_record(row) for row in connection.execute(query)]


def one_record(connection: sa.Connection, sync: str) -> SyncRecord | None:
    row = connection.execute(_select().where(syncs.c.sync == sync)).first()
    return None if row is None else _record(row)


def committed(connection: sa.Connection, run: str) -> SlabRef | None:
    """Return the weights of the newest sync that was decided with "commit"."""
    found = records(connection, run, 1, decisions.c.decision == "commit")
    return found[0].slab if found else None


def syncs_before(
    connection: sa.Connection, *, before: int | None = None, limit: int = 100, run: str | None = None
) -> list[Sync]:
    """Return syncs with numbers below `before`, the newest first, without their transitions."""
    query = _select()
    if run is not None:
        query = query.where(syncs.c.run == run)
    if before is not None:
        query = query.where(syncs.c.number < before)
    return [
        Sync(row.number, row.run, _record(row), ())
        for row in connection.execute(query.order_by(syncs.c.number.desc()).limit(limit))
    ]


def one_sync(connection: sa.Connection, sync: str) -> Sync:
    """Return a sync with its transitions. Raises `NotFoundError`."""
    row = connection.execute(_select().where(syncs.c.sync == sync)).first()
    if row is None:
        raise NotFoundError(f"there is no sync {sync}")
    query = sa.select(transitions).where(transitions.c.sync == sync).order_by(transitions.c.id)
    happened = (
        SyncPhase(at=found.at, phase=found.phase, what=found.what, replica=found.replica, detail=found.detail)
        for found in connection.execute(query)
    )
    return Sync(row.number, row.run, _record(row), tuple(happened))


def _select() -> sa.Select[Any]:
    joined = syncs.outerjoin(decisions, decisions.c.sync == syncs.c.sync)
    return sa.select(syncs, decisions.c.decision).select_from(joined)


def _record(row: Any) -> SyncRecord:
    previous = None if row.previous_slab is None else SlabRef(row.previous_slab, row.previous_version)
    return SyncRecord(
        sync=row.sync,
        key=row.key,
        epoch=row.epoch,
        slab=SlabRef(row.slab, row.version),
        previous=previous,
        mode=row.mode,
        started=row.started,
        decision=row.decision,
        finished=row.finished,
        result=row.result,
    )
