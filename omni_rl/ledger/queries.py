"""The reads of the ledger: each function takes a connection, which is a snapshot."""

from typing import Any

import sqlalchemy as sa

from omni_rl.api.events import EventAnswer
from omni_rl.api.runs import AttemptAnswer
from omni_rl.api.steps import PositionBin
from omni_rl.consistency.figures import Metrics
from omni_rl.consistency.shown import number_or_none
from omni_rl.errors import NotFoundError
from omni_rl.kinds import KINDS, MIXED_STATE, OVERALL, WITH_FLIPS
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.tables import (
    BIN_FIGURES,
    FIGURES,
    attempts,
    bins,
    checks,
    events,
    figures,
    parts,
    payloads,
    runs,
    samples,
    steps,
)
from omni_rl.ledger.types import KeptCheck, KeptSample, Part, Run, Sample, Step, StepKey, StepRow

EVERY_KIND = (OVERALL, *KINDS, MIXED_STATE, WITH_FLIPS)


def one_run(connection: sa.Connection, run: str) -> Run:
    row = connection.execute(sa.select(runs).where(runs.c.run == run)).first()
    if row is None:
        raise NotFoundError(f"there is no run {run}")
    of_run = sa.select(attempts.c.attempt, attempts.c.id).where(attempts.c.run == run)
    latest, sealed = None, None
    for number, identity in connection.execute(of_run.order_by(attempts.c.attempt.desc())).all():
        of_attempt = sa.select(steps.c.step, steps.c.sealed).where(steps.c.attempt_id == identity)
        last = connection.execute(of_attempt.order_by(steps.c.step.desc()).limit(1)).first()
        if last is not None:
            latest, sealed = StepKey(run, number, last.step), last.sealed
            break
    return Run(run, row.created, row.config, row.state, latest, sealed)


def attempts_of(connection: sa.Connection, run: str) -> list[AttemptAnswer]:
    """Return the attempts of a run, oldest first. Raises `NotFoundError`."""
    one_run(connection, run)
    found = []
    for row in connection.execute(sa.select(attempts).where(attempts.c.run == run).order_by(attempts.c.attempt)):
        # One row at a time reads the ends of the primary key, whatever lies between.
        of = steps.c.attempt_id == row.id
        ends = sa.select(sa.func.min(steps.c.step)).where(of), sa.select(sa.func.max(steps.c.step)).where(of)
        first, last = (connection.execute(end).scalar() for end in ends)
        found.append(AttemptAnswer(attempt=row.attempt, started=row.started, first=first, last=last))
    return found


def attempt_id(connection: sa.Connection, run: str, attempt: int) -> int:
    """Return the id of an attempt's row. Raises `NotFoundError`."""
    query = sa.select(attempts.c.id).where(attempts.c.run == run, attempts.c.attempt == attempt)
    found = connection.execute(query).scalar()
    if found is None:
        one_run(connection, run)
        raise NotFoundError(f"run {run} has no attempt {attempt}")
    return int(found)


def parts_of(connection: sa.Connection, key: StepKey) -> list[Part]:
    """Return what was posted for a step, by rank; empty if nothing was."""
    identity = attempt_id(connection, key.run, key.attempt)
    size = sa.func.coalesce(sa.func.length(payloads.c.records), 0).label("size")
    same = [getattr(parts.c, name) == getattr(payloads.c, name) for name in ("attempt_id", "step", "rank")]
    query = sa.select(parts, size).select_from(parts.outerjoin(payloads, sa.and_(*same)))
    of_step = query.where(parts.c.attempt_id == identity, parts.c.step == key.step).order_by(parts.c.rank)
    return [
        Part(row.rank, row.digest, row.samples, row.tokens, row.received, row.size)
        for row in connection.execute(of_step)
    ]


def records_of(connection: sa.Connection, key: StepKey) -> dict[int, StepRecords]:
    """Return the records of every rank of a step that is not sealed, or was sealed not long ago.

    Raises:
        NotFoundError: nothing was posted, or the records have been dropped since the seal.
    """
    identity = attempt_id(connection, key.run, key.attempt)
    query = sa.select(payloads.c.rank, payloads.c.records)
    of_step = (payloads.c.attempt_id == identity, payloads.c.step == key.step)
    found = connection.execute(query.where(*of_step).order_by(payloads.c.rank)).all()
    if not found:
        posted = bool(parts_of(connection, key))
        why = "was sealed long ago: its records are gone" if posted else "has no parts; post them before it is sealed"
        raise NotFoundError(f"{key} {why}")
    return {rank: StepRecords.from_payload(bytes(payload)) for rank, payload in found}


def steps_after(
    connection: sa.Connection, run: str, attempt: int, *, after: int = -1, limit: int = 1000
) -> list[StepRow]:
    """Return sealed steps with numbers above `after`, in order."""
    identity = attempt_id(connection, run, attempt)
    query = _step_rows(identity).where(steps.c.step > after).order_by(steps.c.step).limit(limit)
    return [_step_row(run, attempt, row) for row in connection.execute(query)]


def steps_spread(
    connection: sa.Connection, run: str, attempt: int, *, after: int = -1, last: int | None = None, points: int = 1000
) -> list[StepRow]:
    """Return about `points` of the sealed steps above `after` and up to `last`, at even distances, with the last one;
    all of them where there are no more."""
    identity = attempt_id(connection, run, attempt)
    inside = [steps.c.attempt_id == identity, steps.c.step > after, *([] if last is None else [steps.c.step <= last])]
    ends = sa.select(sa.func.min(steps.c.step), sa.func.max(steps.c.step)).where(*inside)
    low, high = connection.execute(ends).one()
    if low is None:
        return []
    apart = -(-(high - low + 1) // points)
    query = _step_rows(identity).where(*inside)
    if apart > 1:
        marks = sa.select(sa.literal(low, sa.BigInteger).label("at")).cte("marks", recursive=True)
        marks = marks.union_all(sa.select(marks.c.at + apart).where(marks.c.at + apart <= high))
        near = [steps.c.attempt_id == identity, steps.c.step >= marks.c.at, steps.c.step < marks.c.at + apart]
        first = sa.select(sa.func.min(steps.c.step)).where(*near).correlate(marks).scalar_subquery()
        query = query.where(sa.or_(steps.c.step.in_(sa.select(first).select_from(marks)), steps.c.step == high))
    return [_step_row(run, attempt, row) for row in connection.execute(query.order_by(steps.c.step))]


def one_step(connection: sa.Connection, key: StepKey) -> Step:
    """Return a sealed step. Raises `NotFoundError` if the step is not sealed."""
    identity = attempt_id(connection, key.run, key.attempt)
    row = connection.execute(_step_rows(identity).where(steps.c.step == key.step)).first()
    if row is None:
        raise NotFoundError(f"{key} is not sealed")
    config = connection.execute(sa.select(runs.c.config).where(runs.c.run == key.run)).scalar_one()
    kinds = (*EVERY_KIND, *config.get("kinds", ()))
    of_kinds = (figures.c.attempt_id == identity, figures.c.kind.in_(kinds), figures.c.step == key.step)
    of_step = (samples.c.attempt_id == identity, samples.c.step == key.step)
    by_kind = {found.kind: _metrics(found) for found in connection.execute(sa.select(figures).where(*of_kinds))}
    by_position: dict[str, list[PositionBin]] = {}
    query = sa.select(bins).where(bins.c.attempt_id == identity, bins.c.step == key.step)
    for found in connection.execute(query.order_by(bins.c.kind, bins.c.first)):
        values = {name: number_or_none(getattr(found, name)) for name in BIN_FIGURES}
        one = PositionBin(first=found.first, last=found.last, figures=values)
        by_position.setdefault(found.kind, []).append(one)
    kept = sa.select(samples.c.rank, samples.c.sample, samples.c.kind, samples.c.place, samples.c.figures).where(
        *of_step
    )
    return Step(
        _step_row(key.run, key.attempt, row),
        row.verdict,
        {kind: by_kind[kind] for kind in kinds if kind in by_kind},
        {kind: tuple(found) for kind, found in by_position.items()},
        tuple(_kept(found) for found in connection.execute(kept.order_by(samples.c.place))),
        tuple(parts_of(connection, key)),
        None if row.flips is None else tuple(row.flips),
    )


def one_sample(connection: sa.Connection, key: StepKey, sample: str, rank: int | None = None) -> Sample:
    """Return the sample of that name that `rank` posted, or without a rank the one of that name that is furthest apart.
    Raises `NotFoundError` if it was not stored, or has been dropped."""
    identity = attempt_id(connection, key.run, key.attempt)
    of_sample = (samples.c.attempt_id == identity, samples.c.step == key.step, samples.c.sample == sample)
    query = sa.select(samples).where(*of_sample).order_by(samples.c.place)
    if rank is not None:
        query = query.where(samples.c.rank == rank)
    found = connection.execute(query).first()
    if found is None:
        raise NotFoundError(f"sample {sample} of {key} is not kept: the worst of a step are, for some time")
    first = found.record
    if not first:
        of_step = (samples.c.attempt_id == identity, samples.c.step == key.step, samples.c.place == 0)
        first = connection.execute(sa.select(samples.c.record).where(*of_step)).scalar_one()
    return Sample(key, _kept(found), StepRecords.from_payload(bytes(first)).at_place(found.place))


def events_after(
    connection: sa.Connection, *, after: int = 0, limit: int = 1000, run: str | None = None
) -> list[EventAnswer]:
    """Return events with numbers above `after`, in order of their numbers."""
    query = sa.select(events).where(events.c.id > after)
    if run is not None:
        query = query.where(events.c.run == run)
    return [
        EventAnswer(id=row.id, at=row.at, kind=row.kind, run=row.run, data=row.data)
        for row in connection.execute(query.order_by(events.c.id).limit(limit))
    ]


def last_event(connection: sa.Connection) -> int:
    """Return the newest event's number, or 0 before the first."""
    return int(connection.execute(sa.select(sa.func.max(events.c.id))).scalar() or 0)


def newest_checks(
    connection: sa.Connection,
    *,
    limit: int = 100,
    run: str | None = None,
    attempt: int | None = None,
    step: int | None = None,
) -> list[KeptCheck]:
    """Return the newest checks about a run's steps, an attempt's or one step; without a run, all checks, those of the
    probe among them."""
    query = sa.select(checks).order_by(checks.c.id.desc()).limit(limit)
    for name, value in {"run": run, "attempt": attempt, "step": step}.items():
        if value is not None:
            query = query.where(checks.c[name] == value)
    return [_check(row) for row in connection.execute(query)]


def one_check(connection: sa.Connection, number: int) -> KeptCheck:
    """Return a check. Raises `NotFoundError` if it was never made, or has been dropped."""
    row = connection.execute(sa.select(checks).where(checks.c.id == number)).first()
    if row is None:
        raise NotFoundError(f"there is no check {number}: those that found nothing wrong are kept for some time")
    return _check(row)


def _check(row: sa.Row[Any]) -> KeptCheck:
    key = None if row.run is None else StepKey(row.run, row.attempt, row.step)
    return KeptCheck(row.id, row.at, key, row.found)


def _step_rows(identity: int) -> sa.Select[Any]:
    joined = steps.join(
        figures,
        sa.and_(figures.c.attempt_id == steps.c.attempt_id, figures.c.kind == OVERALL, figures.c.step == steps.c.step),
    )
    columns = [figures.c[name].label(f"figure_{name}") for name in FIGURES]
    return sa.select(steps, *columns).select_from(joined).where(steps.c.attempt_id == identity)


def _step_row(run: str, attempt: int, row: sa.Row[Any]) -> StepRow:
    return StepRow(
        StepKey(run, attempt, row.step),
        row.sealed,
        row.severity,
        row.samples,
        row.tokens,
        row.weight_version,
        row.training,
        _metrics(row, "figure_"),
    )


def _metrics(row: Any, prefix: str = "") -> Metrics:
    return Metrics(**{name: getattr(row, prefix + name) for name in FIGURES})


def _kept(row: Any) -> KeptSample:
    return KeptSample(row.rank, row.sample, row.kind, row.place, row.figures)
