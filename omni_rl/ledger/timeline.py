"""Figures over steps at every scale: the extremes of 4 steps, of 16, of 64 and so on, updated as steps come.

A chart of a million steps then reads some thousand rows, and no spike is lost: it is an extreme of each bucket that
holds it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite

from omni_rl.consistency.figures import Metrics
from omni_rl.errors import ConfigError
from omni_rl.kinds import OVERALL
from omni_rl.ledger.queries import attempt_id
from omni_rl.ledger.tables import FIGURES, figures, steps, timeline
from omni_rl.ledger.types import Timeline

WIDTHS = tuple(4**level for level in range(1, 11))
"""How many steps a bucket of each level covers; the widest covers a million."""
ROWS = 2048
"""The most rows that are read for one chart; it reads a quarter of that at least, where there are more steps."""


def add(
    connection: sa.Connection, attempt: int, step: int, severity: int, found: Iterable[tuple[str, Metrics]]
) -> None:
    """Put a step's figures, by kind, into its buckets."""
    of_step = {"attempt_id": attempt, "step": step, "severity": severity}
    rows = [of_step | {"kind": kind} | _figures(metrics) for kind, metrics in found]
    connection.execute(_ADD[connection.dialect.name], rows)


def read(
    connection: sa.Connection,
    run: str,
    attempt: int,
    names: Sequence[str],
    *,
    kind: str = OVERALL,
    first: int | None = None,
    last: int | None = None,
    points: int = 1000,
) -> Timeline:
    """Return figures over the steps `first` to `last`, inclusive, in at most `points` buckets, without losing an
    extreme; a bucket at either end may reach beyond.

    Raises:
        NotFoundError: there is no such run, or it has no such attempt.
        ConfigError: there is no figure of one of the names.
    """
    identity = attempt_id(connection, run, attempt)
    if unknown := sorted(set(names) - set(FIGURES)):
        raise ConfigError(f"no figure {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    low, high = _ends(connection, identity, kind, first, last)
    span = high - low + 1
    width = next((width for width in (1, *WIDTHS) if math.ceil(span / width) < ROWS), WIDTHS[-1])
    rows = _steps(connection, identity, kind, names, low, high) if width == 1 else []
    if width > 1:
        rows = _buckets(connection, identity, kind, names, width, low, high)
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * (5 + 2 * len(names))
    bucket, count, severity, broken = (np.array(column, np.int64) for column in columns[:4])
    sealed = np.array(columns[4], np.float64)
    lows = [np.array(column, np.float64) for column in columns[5::2]]
    highs = [np.array(column, np.float64) for column in columns[6::2]]
    together = math.ceil((span // width + 1) / points) if len(bucket) > points else 1
    group = bucket // together
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    width *= together
    return Timeline(
        kind,
        width,
        np.maximum(group[starts] * width, low),
        np.minimum(group[starts] * width + width - 1, high),
        _each(np.add, count, starts),
        _each(np.maximum, sealed, starts),
        _each(np.maximum, severity, starts),
        _each(np.add, broken, starts),
        {name: _each(np.fmin, values, starts) for name, values in zip(names, lows, strict=True)},
        {name: _each(np.fmax, values, starts) for name, values in zip(names, highs, strict=True)},
    )


def _ends(connection: sa.Connection, attempt: int, kind: str, first: int | None, last: int | None) -> tuple[int, int]:
    """Return the first and the last step that there is in a range; (0, -1) if there is none."""
    where = [figures.c.attempt_id == attempt, figures.c.kind == kind]
    where += [figures.c.step >= first] if first is not None else []
    where += [figures.c.step <= last] if last is not None else []
    step = sa.select(figures.c.step).where(*where).limit(1)
    low, high = (connection.execute(step.order_by(order)).scalar() for order in (figures.c.step, figures.c.step.desc()))
    return (0, -1) if low is None or high is None else (low, high)


def _steps(
    connection: sa.Connection, attempt: int, kind: str, names: Sequence[str], low: int, high: int
) -> Sequence[Any]:
    missing = sa.case((sa.and_(figures.c.tokens > 0, figures.c.logprob_abs_diff_mean.is_(None)), 1), else_=0)
    values = [_plain(figures.c[name]).label(f"{name}_{end}") for name in names for end in ("low", "high")]
    query = (
        sa.select(figures.c.step, sa.literal_column("1"), steps.c.severity, missing, steps.c.sealed, *values)
        .join_from(figures, steps, sa.and_(steps.c.attempt_id == figures.c.attempt_id, steps.c.step == figures.c.step))
        .where(figures.c.attempt_id == attempt, figures.c.kind == kind, figures.c.step.between(low, high))
    )
    return connection.execute(query.order_by(figures.c.step)).all()


def _buckets(
    connection: sa.Connection, attempt: int, kind: str, names: Sequence[str], width: int, low: int, high: int
) -> Sequence[Any]:
    of = timeline.c
    values = [_plain(of[f"{name}_{end}"]) for name in names for end in ("low", "high")]
    inside = sa.and_(steps.c.attempt_id == attempt, steps.c.step < (of.bucket + 1) * width, steps.c.step <= high)
    sealed = sa.select(steps.c.sealed).where(inside).order_by(steps.c.step.desc()).limit(1).scalar_subquery()
    query = sa.select(of.bucket, of.steps, of.severity, of.broken, sealed, *values).where(
        of.attempt_id == attempt, of.kind == kind, of.width == width, of.bucket.between(low // width, high // width)
    )
    return connection.execute(query.order_by(of.bucket)).all()


def _plain(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return the column's values as the driver gives them: converting them one by one would take longer than the
    query."""
    return sa.type_coerce(column, sa.Double)


def _each(reduction: np.ufunc, values: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[Any]:
    result: NDArray[Any] = reduction.reduceat(values, starts) if len(starts) else values
    return result


def _figures(metrics: Metrics) -> dict[str, Any]:
    broken = metrics.tokens > 0 and math.isnan(metrics.logprob_abs_diff_mean)
    return {"broken": int(broken)} | {name: float(getattr(metrics, name)) for name in FIGURES}


def _adding(insert: Any) -> Any:
    """Return the statement that inserts a step's bucket of each width, or widens those that are there; the database
    makes the row for each width."""
    widths = sa.union_all(*(sa.select(sa.literal_column(str(width)).label("width")) for width in WIDTHS)).subquery()
    values: dict[str, Any] = {
        name: sa.bindparam(name, type_=timeline.c[name].type) for name in ("attempt_id", "kind", "severity", "broken")
    }
    values |= {"width": widths.c.width, "bucket": sa.bindparam("step", type_=sa.BigInteger) // widths.c.width}
    values["steps"] = sa.literal_column("1")
    for name in FIGURES:
        values[f"{name}_low"] = values[f"{name}_high"] = sa.bindparam(name, type_=timeline.c[f"{name}_low"].type)
    # Without a condition SQLite would take the ON of ON CONFLICT for a join's.
    chosen = sa.select(*values.values()).where(sa.text("1 = 1"))
    statement = insert(timeline).from_select(list(values), chosen)
    new, old = statement.excluded, timeline.c
    changes: dict[str, Any] = {
        "steps": old.steps + new.steps,
        "broken": old.broken + new.broken,
        "severity": sa.case((new.severity > old.severity, new.severity), else_=old.severity),
    }
    for name in FIGURES:
        low, high = f"{name}_low", f"{name}_high"
        changes[low] = sa.case((sa.or_(old[low].is_(None), new[low] < old[low]), new[low]), else_=old[low])
        changes[high] = sa.case((sa.or_(old[high].is_(None), new[high] > old[high]), new[high]), else_=old[high])
    keys = [old.attempt_id, old.kind, old.width, old.bucket]
    return statement.on_conflict_do_update(index_elements=keys, set_=changes)


_ADD = {"sqlite": _adding(sqlite.insert), "postgresql": _adding(postgresql.insert)}
