"""Adds steps that were judged elsewhere, many at once, to measure and to test charts with."""

import math
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from omni_rl.consistency.limits import Severity
from omni_rl.consistency.need import need_of
from omni_rl.consistency.policy import Drift
from omni_rl.errors import ConflictError, NotFoundError
from omni_rl.kinds import OVERALL
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.tables import COUNTS, FIGURES, attempts, figures, runs, steps, timeline
from omni_rl.ledger.timeline import WIDTHS

ROWS = 10_000
"""Rows that one statement inserts."""


def bring_in(
    ledger: Ledger,
    run: str,
    attempt: int,
    numbers: NDArray[np.int64],
    values: Mapping[str, NDArray[np.float64]],
    *,
    severity: NDArray[np.int64] | None = None,
    kind: str = OVERALL,
) -> "Future[None]":
    """Add a new attempt to a run, all of it or none. It has steps `numbers` [N] with figures [N] by name; a figure that
    is not given is NaN, and a count is 0.

    Raises (the future):
        NotFoundError: there is no such run.
        ConflictError: the run has an attempt of that number.
    """

    def operation(connection: sa.Connection) -> None:
        if connection.execute(sa.select(runs.c.run).where(runs.c.run == run)).scalar() is None:
            raise NotFoundError(f"there is no run {run}; register it first")
        of_attempt = sa.select(attempts.c.id).where(attempts.c.run == run, attempts.c.attempt == attempt)
        if connection.execute(of_attempt).scalar() is not None:
            raise ConflictError(f"run {run} has an attempt {attempt}; take another number")
        row = {"run": run, "attempt": attempt, "started": time.time()}
        identity = int(connection.execute(sa.insert(attempts).values(row).returning(attempts.c.id)).scalar_one())
        for start in range(0, len(numbers), ROWS):
            part = slice(start, start + ROWS)
            found = {name: column[part].tolist() for name, column in values.items()}
            severities = [0] * len(numbers[part]) if severity is None else severity[part].tolist()
            tokens = found.get("tokens", [0] * len(severities))
            connection.execute(
                sa.insert(steps),
                [
                    _step_row(identity, step, level, _count(count))
                    for step, level, count in zip(numbers[part].tolist(), severities, tokens, strict=True)
                ],
            )
            columns = [found.get(name, [math.nan] * len(severities)) for name in FIGURES]
            connection.execute(
                sa.insert(figures),
                [
                    {"attempt_id": identity, "kind": kind, "step": step} | _figure_row(row)
                    for step, *row in zip(numbers[part].tolist(), *columns, strict=True)
                ],
            )
        rebuild(connection, identity)
        last = 0 if severity is None or not len(severity) else int(severity[-1])
        now, reached = time.time(), Severity(last)
        need = need_of(Drift(severity=max(reached, Severity.OK)), "live", reached)
        place = {"need": int(need), "sealed": now, "due": now}
        connection.execute(sa.update(runs).where(runs.c.run == run).values(place))

    return ledger.writer.submit(operation)


def rebuild(connection: sa.Connection, attempt: int) -> None:
    """Make all buckets of an attempt from its steps."""
    connection.execute(sa.delete(timeline).where(timeline.c.attempt_id == attempt))
    broken = sa.case((sa.and_(figures.c.tokens > 0, figures.c.logprob_abs_diff_mean.is_(None)), 1), else_=0)
    extremes = [function(figures.c[name]) for name in FIGURES for function in (sa.func.min, sa.func.max)]
    for width in WIDTHS:
        bucket = figures.c.step // sa.literal_column(str(width))
        query = (
            sa.select(
                figures.c.attempt_id,
                figures.c.kind,
                sa.literal(width, sa.Integer),
                bucket,
                sa.func.count(),
                sa.func.max(steps.c.severity),
                sa.func.sum(broken),
                *extremes,
            )
            .join_from(
                figures,
                steps,
                sa.and_(steps.c.attempt_id == figures.c.attempt_id, steps.c.step == figures.c.step),
            )
            .where(figures.c.attempt_id == attempt)
            .group_by(figures.c.attempt_id, figures.c.kind, bucket)
        )
        connection.execute(sa.insert(timeline).from_select([column.name for column in timeline.columns], query))


def _step_row(identity: int, step: int, severity: int, tokens: int) -> dict[str, Any]:
    return {
        "attempt_id": identity,
        "step": step,
        "sealed": time.time(),
        "digest": "",
        "severity": severity,
        "samples": 0,
        "tokens": tokens,
        "weight_version": "",
        "verdict": {},
        "training": {},
    }


def _figure_row(values: list[float]) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(FIGURES, values, strict=True))
    return row | {name: _count(row[name]) for name in COUNTS}


def _count(value: float) -> int:
    return 0 if math.isnan(value) else int(value)
