"""Incidents in the ledger: opened once, grown while they are open, and ended; each change is written with its event."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import sqlalchemy as sa

from omni_rl.api.incidents import AcknowledgementAnswer, ActionAnswer, NoteAnswer
from omni_rl.consistency.incidents import Figure, GoodStep
from omni_rl.consistency.shown import number_or_none
from omni_rl.errors import ConflictError, NotFoundError
from omni_rl.ledger.events import add_events
from omni_rl.ledger.tables import incidents
from omni_rl.ledger.types import Incident, IncidentEnd, NewEvent, NewIncident, StepKey

WORSE = 1.5
"""An open incident is worse if its figure exceeds its limit by more than this many times as much as before."""
UNKNOWN = (None, "unknown")
"""The causes that any other cause replaces."""
LISTED = 256
"""The most notes that an incident takes, and the number of its newest actions that stay."""


class OpenSeverity(NamedTuple):
    """The worst severity of a run's open incidents of a kind and a cause that somebody has in hand, or nobody."""

    run: str | None
    kind: str
    cause: str | None
    acknowledged: bool
    severity: int


def see(connection: sa.Connection, run: str | None, new: NewIncident, key: StepKey | None = None) -> int:
    """Open an incident, or let the open one of its run, kind and subject grow; return its number."""
    known = connection.execute(_open(run).where(incidents.c.kind == new.kind, incidents.c.subject == new.subject))
    row = known.first()
    return _opened(connection, run, new, key) if row is None else _grown(connection, incident_of(row), new)


def _opened(connection: sa.Connection, run: str | None, new: NewIncident, key: StepKey | None) -> int:
    now = time.time()
    values: dict[str, Any] = {
        **{name: getattr(new, name) for name in ("kind", "subject", "severity", "cause", "headline", "why", "excess")},
        "run": run,
        "opened": now,
        "changed": now,
        "figure": _document(new.figure),
        "good": _document(new.good),
        "evidence": new.evidence,
        "actions": [{"at": now, "what": new.action}] if new.action else [],
        "notes": [],
        "told": {},
    }
    if key is not None:
        values |= {"attempt": key.attempt, "step": key.step}
    number: int = connection.execute(sa.insert(incidents).values(values).returning(incidents.c.id)).scalar_one()
    _tell(connection, number, run, "opened", kind=new.kind, severity=new.severity, cause=new.cause)
    return number


def _grown(connection: sa.Connection, known: Incident, new: NewIncident) -> int:
    worse = new.severity > known.severity or new.excess > WORSE * known.excess
    changes: dict[str, Any] = {}
    if worse:
        changes |= {"severity": max(known.severity, new.severity), "excess": max(known.excess, new.excess)}
        changes |= {} if new.attributed else {"headline": new.headline, "figure": _document(new.figure)}
    if known.kind != "drift":  # a drift's headline is of its worst step; the others say how it is now
        changes |= {"headline": new.headline, "evidence": new.evidence or known.evidence}
    better = known.cause in UNKNOWN and new.cause not in UNKNOWN
    if new.cause is not None and new.why and (new.attributed or worse or better):
        changes |= {"cause": new.cause, "why": new.why, "evidence": new.evidence or known.evidence}
    changes = {name: value for name, value in changes.items() if value != _value(known, name)}
    if new.action and (not known.actions or known.actions[-1].what != new.action):
        actions = [*map(dict, known.actions), {"at": time.time(), "what": new.action}]
        changes["actions"] = actions[-LISTED:]
    if changes:
        _change(connection, known, "grew", **changes)
    return known.id


def end(connection: sa.Connection, run: str | None, over: IncidentEnd) -> None:
    """End a run's open incidents of the kind, and perhaps the subject, that `over` names."""
    found = _open(run).where(incidents.c.kind == over.kind)
    if over.subject is not None:
        found = found.where(incidents.c.subject == over.subject)
    for row in connection.execute(found).all():
        end_one(connection, row.id, over.why)


def end_one(connection: sa.Connection, number: int, why: str) -> Incident:
    """End one incident, saying why; one that has ended stays as it is. Raises `NotFoundError`."""
    known = one(connection, number)
    if known.ended is not None:
        return known
    now = time.time()
    actions = [*map(dict, known.actions), {"at": now, "what": why}][-LISTED:]
    return _change(connection, known, "ended", ended=now, actions=actions)


def acknowledge(connection: sa.Connection, number: int, by: str) -> Incident:
    """Record that `by` takes care of an incident. The first who says so does; saying so again changes nothing.

    Raises:
        NotFoundError: there is no such incident.
        ConflictError: the incident has ended, or somebody else takes care of it.
    """
    known = one(connection, number)
    if known.acknowledged is not None and known.acknowledged.by == by:
        return known
    if known.ended is not None:
        raise ConflictError(f"incident {number} is over")
    if known.acknowledged is not None:
        raise ConflictError(f"{known.acknowledged.by} has incident {number} in hand; write a note to it")
    return _change(connection, known, "acknowledged", acknowledged={"by": by, "at": time.time()})


def add_note(connection: sa.Connection, number: int, by: str, text: str) -> Incident:
    """Add a note to an incident. Raises `NotFoundError`, and `ConflictError` where the incident has as many notes as it
    takes."""
    known = one(connection, number)
    if len(known.notes) >= LISTED:
        raise ConflictError(f"incident {number} has {LISTED} notes; end it, and write to the next")
    notes = [*map(dict, known.notes), {"by": by, "at": time.time(), "text": text}]
    return _change(connection, known, "noted", notes=notes)


def told(connection: sa.Connection, number: int, webhook: str, state: str) -> None:
    """Remember the state of an incident that was sent to a webhook."""
    before = connection.execute(sa.select(incidents.c.told).where(incidents.c.id == number)).scalar_one()
    connection.execute(sa.update(incidents).where(incidents.c.id == number).values(told={**before, webhook: state}))


def one(connection: sa.Connection, number: int) -> Incident:
    """Return an incident. Raises `NotFoundError`."""
    row = connection.execute(sa.select(incidents).where(incidents.c.id == number)).first()
    if row is None:
        raise NotFoundError(f"there is no incident {number}")
    return incident_of(row)


def some(
    connection: sa.Connection,
    *,
    still_open: bool | None = None,
    run: str | None = None,
    kind: str | tuple[str, ...] | None = None,
    before: int | None = None,
    worst_first: bool = False,
    limit: int = 100,
) -> list[Incident]:
    """Return incidents, the newest first: of a run, of a kind or several, open or not, and with numbers below `before`,
    where these are given. With `worst_first` those of a greater severity come before the others."""
    order = (incidents.c.severity.desc(),) if worst_first else ()
    query = sa.select(incidents).order_by(*order, incidents.c.id.desc()).limit(limit)
    if still_open is not None:
        query = query.where(incidents.c.ended.is_(None) if still_open else incidents.c.ended.is_not(None))
    if run is not None:
        query = query.where(incidents.c.run == run)
    if kind is not None:
        query = query.where(incidents.c.kind.in_((kind,) if isinstance(kind, str) else kind))
    if before is not None:
        query = query.where(incidents.c.id < before)
    return [incident_of(row) for row in connection.execute(query)]


def open_severities(connection: sa.Connection, limit: int) -> list[OpenSeverity]:
    """Return the severities of all open incidents; the `limit` worst, and of those the newest, where there are more."""
    in_hand = incidents.c.acknowledged.is_not(None).label("in_hand")
    alike = (incidents.c.run, incidents.c.kind, incidents.c.cause, in_hand)
    worst = sa.func.max(incidents.c.severity)
    query = sa.select(*alike, worst).where(incidents.c.ended.is_(None)).group_by(*alike)
    ordered = query.order_by(worst.desc(), sa.func.max(incidents.c.id).desc()).limit(limit)
    return [
        OpenSeverity(run, kind, cause, bool(known), severity)
        for run, kind, cause, known, severity in connection.execute(ordered)
    ]


def runs_with_open(connection: sa.Connection, kind: str) -> list[str]:
    """Return every run that has an open incident of a kind, that of the newest last."""
    open_ones = (incidents.c.ended.is_(None), incidents.c.kind == kind, incidents.c.run.is_not(None))
    query = sa.select(incidents.c.run).where(*open_ones).group_by(incidents.c.run)
    return list(connection.execute(query.order_by(sa.func.max(incidents.c.id))).scalars())


def changed_since(connection: sa.Connection, at: float) -> list[Incident]:
    """Return the incidents that are open, and those that ended at `at` or later; oldest first."""
    recent = sa.or_(incidents.c.ended.is_(None), incidents.c.ended >= at)
    return [incident_of(row) for row in connection.execute(sa.select(incidents).where(recent).order_by(incidents.c.id))]


def _open(run: str | None) -> sa.Select[Any]:
    of_run = incidents.c.run.is_(None) if run is None else incidents.c.run == run
    return sa.select(incidents).where(incidents.c.ended.is_(None), of_run)


def _change(connection: sa.Connection, known: Incident, what: str, **values: Any) -> Incident:
    here = sa.update(incidents).where(incidents.c.id == known.id)
    connection.execute(here.values(**values, changed=time.time()))
    now = one(connection, known.id)
    _tell(connection, now.id, now.run, what, kind=now.kind, severity=now.severity, cause=now.cause)
    return now


def _tell(connection: sa.Connection, number: int, run: str | None, what: str, **more: Any) -> None:
    add_events(connection, [NewEvent("incident", {"incident": number, "what": what, **more}, run)])


def _document(part: Figure | GoodStep | None) -> dict[str, Any] | None:
    """Return a figure or a step as a document. A number that is not finite is null there, since JSON has none."""
    if part is None:
        return None
    return {name: number_or_none(value) if isinstance(value, float) else value for name, value in asdict(part).items()}


def _value(known: Incident, name: str) -> Any:
    value = getattr(known, name)
    return _document(value) if isinstance(value, Figure | GoodStep) else value


def incident_of(row: sa.Row[Any]) -> Incident:
    """Return a row of the table as an incident."""
    return Incident(
        **{
            **row._mapping,
            "figure": None if row.figure is None else _figure(row.figure),
            "good": None if row.good is None else GoodStep(**row.good),
            "actions": tuple(ActionAnswer(**done) for done in row.actions),
            "acknowledged": None if row.acknowledged is None else AcknowledgementAnswer(**row.acknowledged),
            "notes": tuple(NoteAnswer(**note) for note in row.notes),
        }
    )


def _figure(kept: Mapping[str, Any]) -> Figure:
    return Figure(kept["kind"], kept["metric"], math.nan if kept["value"] is None else kept["value"], kept["limit"])
