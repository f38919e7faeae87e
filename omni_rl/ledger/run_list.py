"""Lists runs among thousands: searched, filtered and sorted by an index, without reading their steps."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from omni_rl.consistency.limits import Severity
from omni_rl.consistency.need import Need
from omni_rl.ledger import queries
from omni_rl.ledger.incidents import incident_of
from omni_rl.ledger.tables import incidents, runs
from omni_rl.ledger.types import Incident, Run, StepKey

Order = Literal["newest", "need"]


@dataclass(frozen=True)
class Wanted:
    """Which runs to list, and in which order. `search` is a part of their names. `unseen` are runs whose cluster the
    coordinator cannot see, so that it does not know what they do."""

    search: str = ""
    needs: tuple[Need, ...] = ()
    order: Order = "newest"
    offset: int = 0
    limit: int = 100
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listed:
    """A run, how much it needs a person, and the worst of its open incidents."""

    run: Run
    need: Need
    incident: Incident | None


def listed(connection: sa.Connection, wanted: Wanted) -> tuple[list[Listed], int]:
    """Return the runs of a page, and how many there are on all pages."""
    worst = _worst()
    need = _need(worst, wanted.unseen).label("need")
    found = sa.select(runs.c.run, need).select_from(_joined(worst))
    if wanted.search:
        found = found.where(runs.c.run.icontains(wanted.search, autoescape=True))
    if wanted.needs:
        found = found.where(need.in_([int(one) for one in wanted.needs]))
    newest = (runs.c.created.desc(), runs.c.run.desc())
    by = newest if wanted.order == "newest" else (need.desc(), runs.c.sealed.desc().nulls_last(), *newest)
    page = connection.execute(found.order_by(*by).limit(wanted.limit).offset(wanted.offset)).all()
    total = connection.execute(sa.select(sa.func.count()).select_from(found.subquery())).scalar_one()
    names = [row.run for row in page]
    of = {row.run: row for row in connection.execute(sa.select(runs).where(runs.c.run.in_(names)))}
    open_ones = _open_incidents(connection, names)
    return [Listed(_run(connection, of[row.run]), Need(row.need), open_ones.get(row.run)) for row in page], int(total)


def needs(connection: sa.Connection, unseen: Collection[str] = ()) -> dict[Need, int]:
    """Return how many runs there are of each need, the most urgent first."""
    worst = _worst()
    need = _need(worst, unseen).label("need")
    counted = sa.select(need, sa.func.count().label("runs")).select_from(_joined(worst)).group_by(need)
    return {Need(row.need): row.runs for row in connection.execute(counted.order_by(need.desc()))}


def one_listed(connection: sa.Connection, run: str, unseen: Collection[str] = ()) -> Listed:
    """Return one run as `listed` does. Raises `NotFoundError`."""
    found = queries.one_run(connection, run)
    worst = _worst()
    need = sa.select(_need(worst, unseen)).select_from(_joined(worst)).where(runs.c.run == run)
    return Listed(found, Need(connection.execute(need).scalar_one()), _open_incidents(connection, [run]).get(run))


def overdue(connection: sa.Connection, now: float, limit: int) -> list[str]:
    """Return the runs that count as silent since a time before `now`, at most `limit` of them."""
    found = sa.select(runs.c.run).where(runs.c.due < now).order_by(runs.c.due).limit(limit)
    return list(connection.execute(found).scalars())


def under_way(connection: sa.Connection) -> list[str]:
    """Return the runs whose generation is stopped, whose cause is being looked for, or that a person has to look at: by
    their policy's state."""
    found = sa.select(runs.c.run, runs.c.state).where(runs.c.need >= int(Need.WARN), runs.c.state.is_not(None))
    return [
        row.run
        for row in connection.execute(found)
        if row.state["gate"] != "open"
        or row.state["pursuit"] != "nothing"
        or row.state["severity"] >= int(Severity.MASK)
    ]


def to_remember(connection: sa.Connection, limit: int) -> list[Run]:
    """Return the `limit` newest runs, and those where something is under way; oldest first."""
    names = dict.fromkeys((*under_way(connection), *newest(connection, limit)))
    found = [queries.one_run(connection, name) for name in names]
    return sorted(found, key=lambda run: (run.created, run.run))


def newest(connection: sa.Connection, limit: int) -> list[str]:
    """Return the names of the newest runs, oldest first."""
    found = sa.select(runs.c.run).order_by(runs.c.created.desc(), runs.c.run.desc()).limit(limit)
    return list(connection.execute(found).scalars())[::-1]


def _worst() -> sa.Subquery:
    """Return the query for the worst severity of each run's open incidents."""
    return (
        sa.select(incidents.c.run, sa.func.max(incidents.c.severity).label("severity"))
        .where(incidents.c.ended.is_(None), incidents.c.run.is_not(None))
        .group_by(incidents.c.run)
        .subquery()
    )


def _joined(worst: sa.Subquery) -> sa.FromClause:
    return runs.outerjoin(worst, worst.c.run == runs.c.run)


def _need(worst: sa.Subquery, unseen: Collection[str]) -> sa.ColumnElement[Any]:
    """Return the most urgent of a run's own need, the need of its open incidents, and UNKNOWN for a run that cannot be
    seen."""
    of_severity = {Severity.PAUSE: Need.PAUSE, Severity.MASK: Need.MASK, Severity.WARN: Need.WARN}
    raised = [
        (sa.and_(worst.c.severity == int(severity), runs.c.need < int(need)), sa.literal(int(need)))
        for severity, need in of_severity.items()
    ]
    hidden = sa.and_(
        runs.c.run.in_(list(unseen)),
        runs.c.need.between(int(Need.OK), int(Need.UNKNOWN)),
        sa.func.coalesce(worst.c.severity, 0) < int(Severity.PAUSE),
    )
    unknown = [(hidden, sa.literal(int(Need.UNKNOWN)))] if unseen else []
    return sa.case(*unknown, *raised, else_=runs.c.need)


def _open_incidents(connection: sa.Connection, names: Sequence[str]) -> dict[str, Incident]:
    """Return the worst open incident of each run: the last of its rows in this order."""
    found = sa.select(incidents).where(incidents.c.ended.is_(None), incidents.c.run.in_(names))
    rows = connection.execute(found.order_by(incidents.c.severity, incidents.c.id))
    return {row.run: incident_of(row) for row in rows}


def _run(connection: sa.Connection, row: sa.Row[Any]) -> Run:
    """Return a run with its newest step as its state says, or, where its steps were judged elsewhere, as the steps
    say."""
    line = (row.state or {}).get("line")
    if line is None:
        return queries.one_run(connection, row.run)
    latest = None if line["step"] is None else StepKey(row.run, line["attempt"], line["step"])
    return Run(row.run, row.created, row.config, row.state, latest, line["sealed"])
