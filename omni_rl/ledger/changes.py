"""The writes of the ledger, each within one transaction that its caller commits.

Figures, verdicts and events stay; the constants say what is dropped, and when.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from blake3 import blake3
from sqlalchemy.dialects import postgresql, sqlite

from omni_rl.consistency.figures import Metrics
from omni_rl.errors import ConflictError, NotFoundError
from omni_rl.ledger import incidents, timeline
from omni_rl.ledger.events import add_events
from omni_rl.ledger.tables import (
    BIN_FIGURES,
    attempts,
    bins,
    checks,
    figures,
    parts,
    payloads,
    runs,
    samples,
    steps,
)
from omni_rl.ledger.types import KeptCheck, NewState, NewStep, StepKey, Stored, WorstSamples

OK = 0
"""The severity of a step that nothing is wrong with."""
PAYLOAD_STEPS = 2
"""How many of an attempt's newest sealed steps have their parts still, so that a seal whose answer was lost can be
asked for again."""
SAMPLE_STEPS = 1000
"""After how many steps the samples of a step that nothing was wrong with are dropped."""
NEWER_CHECKS = 1000
"""How many newer checks there are when one that found nothing wrong is dropped."""

# Built once: each step would pay again for what SQLAlchemy derives of a statement.
_into = cache(sa.insert)
_ATTEMPT = sa.select(attempts.c.id).where(
    attempts.c.run == sa.bindparam("run"), attempts.c.attempt == sa.bindparam("attempt")
)
_SEALED = sa.select(steps.c.digest).where(
    steps.c.attempt_id == sa.bindparam("attempt"), steps.c.step == sa.bindparam("step")
)
_PARTS = sa.select(parts.c.rank, parts.c.digest, parts.c.tokens).where(
    parts.c.attempt_id == sa.bindparam("attempt"), parts.c.step == sa.bindparam("step")
)
_SIZE = sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(payloads.c.records)), 0)).where(
    payloads.c.attempt_id == sa.bindparam("attempt"), payloads.c.step == sa.bindparam("step")
)
_NEWEST_BUT = (
    sa.select(steps.c.step)
    .where(steps.c.attempt_id == sa.bindparam("attempt"))
    .order_by(steps.c.step.desc())
    .offset(sa.bindparam("few", type_=sa.Integer))
    .limit(1)
)
# Of the payloads there are few: look up the steps of those, not the payloads of all steps.
_DROP_PAYLOADS = sa.delete(payloads).where(
    payloads.c.attempt_id == sa.bindparam("attempt"),
    payloads.c.step < _NEWEST_BUT.scalar_subquery(),
    sa.exists().where(steps.c.attempt_id == payloads.c.attempt_id, steps.c.step == payloads.c.step),
)
_DROP_SAMPLES = sa.delete(samples).where(
    samples.c.attempt_id == sa.bindparam("attempt"),
    samples.c.step.in_(
        sa.select(steps.c.step).where(
            steps.c.attempt_id == sa.bindparam("attempt"), steps.c.step == sa.bindparam("old"), steps.c.severity == OK
        )
    ),
)


@dataclass(frozen=True)
class PartContent:
    """A rank's part of a step, ready to be written."""

    digest: str
    samples: int
    tokens: int
    payload: bytes


def insert_new(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless one with its key is there, and return whether it was inserted."""
    return connection.execute(_into_new(table, connection.dialect.name), values).first() is not None


@cache
def _into_new(table: sa.Table, dialect: str) -> sa.Insert:
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing().returning(sa.literal(1))


def put_run(connection: sa.Connection, run: str, config: Mapping[str, Any]) -> Stored:
    """Register a run. Raises `ConflictError` if it is registered with another `config`."""
    if insert_new(connection, runs, {"run": run, "created": time.time(), "config": config}):
        return "new"
    known = connection.execute(sa.select(runs.c.config).where(runs.c.run == run)).scalar_one()
    given = json.loads(json.dumps(config))
    # A run that an older version registered lacks later settings, which is the same as having them empty.
    changed = sorted(
        name
        for name in known.keys() | given.keys()
        if known.get(name) != given.get(name) and (name in known or given[name] not in (None, [], {}))
    )
    if changed:
        raise ConflictError(
            f"run {run} is registered with other values of {', '.join(changed)}; take another name, or its own values"
        )
    return "same"


def put_state(connection: sa.Connection, run: str, new: NewState) -> None:
    """Replace what a run's policy carries, and write the events and incidents that tell why."""
    values = {"state": new.state, **asdict(new.place)}
    if connection.execute(sa.update(runs).where(runs.c.run == run).values(values)).rowcount == 0:
        raise NotFoundError(f"there is no run {run}")
    add_events(connection, new.events)
    for over in new.over:
        incidents.end(connection, run, over)
    for seen in new.seen:
        incidents.see(connection, run, seen, new.key)


def put_part(
    connection: sa.Connection, key: StepKey, rank: int, part: PartContent, fits: Callable[[int, int], None]
) -> Stored:
    """Store one rank's part of a step. Raises `NotFoundError` if there is no such run, `ConflictError` if the rank has
    posted something else or the step is sealed without the part, and what `fits` raises when it is called with the
    tokens and the bytes that the step then has."""
    attempt = _attempt(connection, key)
    where = {"attempt_id": attempt, "step": key.step, "rank": rank}
    there = connection.execute(_PARTS, {"attempt": attempt, "step": key.step}).all()
    known = next((row.digest for row in there if row.rank == rank), None)
    if known == part.digest:
        return "same"
    if known is not None:
        raise ConflictError(
            f"rank {rank} has posted other records for {key}: {known[:12]} is there, this is {part.digest[:12]}"
        )
    size = int(connection.execute(_SIZE, {"attempt": attempt, "step": key.step}).scalar_one()) if there else 0
    fits(part.tokens + sum(row.tokens for row in there), size + len(part.payload))
    if _sealed(connection, attempt, key.step) is not None:
        raise ConflictError(f"{key} is sealed; rank {rank} came too late")
    content = {"digest": part.digest, "samples": part.samples, "tokens": part.tokens, "received": time.time()}
    connection.execute(_into(parts), {**where, **content})
    connection.execute(_into(payloads), {**where, "records": part.payload})
    return "new"


def seal(connection: sa.Connection, step: NewStep) -> Stored:
    """Close a step with its figures, samples, verdict, policy, events and incidents: all of it or none. Returns "same",
    with nothing written, if the step is sealed with the same parts.

    Raises:
        NotFoundError: no part of the step is there.
        ConflictError: other parts are there than those that were judged, or the step was sealed with others.
    """
    key = step.key
    attempt = _attempt(connection, key)
    digest = _digest_of(step.parts)
    sealed = _sealed(connection, attempt, key.step)
    if sealed == digest:
        return "same"
    if sealed is not None:
        raise ConflictError(f"{key} was sealed with other parts")
    there = {row.rank: row.digest for row in connection.execute(_PARTS, {"attempt": attempt, "step": key.step})}
    if not there:
        raise NotFoundError(f"{key} has no parts; post them before it is sealed")
    if there != step.parts:
        others = sorted(rank for rank in there.keys() | step.parts.keys() if there.get(rank) != step.parts.get(rank))
        raise ConflictError(
            f"{key} has other parts than those that were judged: ranks {', '.join(map(str, others))}; seal it again"
        )
    where = {"attempt_id": attempt, "step": key.step}
    connection.execute(
        _into(steps),
        {
            **where,
            "sealed": time.time(),
            "digest": digest,
            "severity": step.severity,
            "samples": step.samples,
            "tokens": step.tokens,
            "weight_version": step.weight_version,
            "verdict": step.verdict,
            "training": step.training,
            "flips": step.flips,
        },
    )
    _insert_figures(connection, where, step)
    if step.after is not None:
        put_state(connection, key.run, step.after)
    _forget(connection, attempt, key.step)
    return "new"


def add_training(connection: sa.Connection, key: StepKey, training: Mapping[str, float | None]) -> None:
    """Add figures of a sealed step's trainer to those that the step was sealed with. Raises `NotFoundError`."""
    of_step = (steps.c.attempt_id == _ATTEMPT.scalar_subquery(), steps.c.step == sa.bindparam("of_step"))
    where = {"run": key.run, "attempt": key.attempt, "of_step": key.step}
    known = connection.execute(sa.select(steps.c.training).where(*of_step), where).scalar()
    if known is None:
        raise NotFoundError(f"{key} is not sealed")
    connection.execute(sa.update(steps).where(*of_step).values(training={**known, **training}), where)


def add_check(connection: sa.Connection, found: Mapping[str, Any], key: StepKey | None = None) -> KeptCheck:
    """Store what a check of a step found, or, without a step, a check of the probe; `found` has a "severity" and a
    "cause". Returns the check with its number."""
    at = time.time()
    where = {} if key is None else key._asdict()
    number = connection.execute(sa.insert(checks).values(at=at, found=found, **where).returning(checks.c.id))
    kept = KeptCheck(number.scalar_one(), at, key, found)
    _forget_check(connection)
    return kept


def _attempt(connection: sa.Connection, key: StepKey) -> int:
    """Return the id of the attempt's row, which is made if this is the first time that the attempt is named."""
    known = connection.execute(_ATTEMPT, {"run": key.run, "attempt": key.attempt}).scalar()
    if known is None:
        if connection.execute(sa.select(runs.c.run).where(runs.c.run == key.run)).scalar() is None:
            raise NotFoundError(f"there is no run {key.run}; register it first")
        row = {"run": key.run, "attempt": key.attempt, "started": time.time()}
        known = connection.execute(sa.insert(attempts).values(row).returning(attempts.c.id)).scalar_one()
    return int(known)


def _sealed(connection: sa.Connection, attempt: int, step: int) -> str | None:
    return connection.execute(_SEALED, {"attempt": attempt, "step": step}).scalar()


def _digest_of(ranks: Mapping[int, str]) -> str:
    return blake3("".join(f"{rank}={digest};" for rank, digest in sorted(ranks.items())).encode()).hexdigest()


def _insert_figures(connection: sa.Connection, where: Mapping[str, Any], step: NewStep) -> None:
    comparison = step.comparison
    rows = [{**where, "kind": kind, **vars(found.metrics)} for kind, found in comparison.comparisons.items()]
    connection.execute(_into(figures), rows)
    of_kinds = ((kind, found.metrics) for kind, found in comparison.comparisons.items())
    timeline.add(connection, where["attempt_id"], where["step"], step.severity, of_kinds)
    rows = [
        {**where, "kind": kind, "first": first, "last": last, **_some(metrics)}
        for kind, of_kind in comparison.by_position.items()
        for (first, last), metrics in of_kind.items()
    ]
    if rows:
        connection.execute(_into(bins), rows)
    if step.kept is not None and step.kept.ranks:
        connection.execute(_into(samples), [{**where, **row} for row in _samples(step.kept)])


def _samples(kept: WorstSamples) -> Iterator[dict[str, Any]]:
    """Yield the rows of a step's worst samples; the first row has the records of all: one by one, they would take twice
    the bytes."""
    records, of_each = kept.records.packed(), zip(kept.records.samples, kept.records.kinds, strict=True)
    for place, (rank, metrics, (sample, kind)) in enumerate(zip(kept.ranks, kept.figures, of_each, strict=True)):
        figures = vars(metrics)
        yield {"rank": rank, "sample": sample, "place": place, "kind": kind, "figures": figures, "record": records}
        records = b""


def _some(metrics: Metrics) -> dict[str, float]:
    return {name: getattr(metrics, name) for name in BIN_FIGURES}


def _forget(connection: sa.Connection, attempt: int, step: int) -> None:
    """Drop what this step makes too old; each step drops the one that falls out, so that every step costs the same."""
    connection.execute(_DROP_PAYLOADS, {"attempt": attempt, "few": PAYLOAD_STEPS - 1})
    connection.execute(_DROP_SAMPLES, {"attempt": attempt, "old": step - SAMPLE_STEPS})


def _forget_check(connection: sa.Connection) -> None:
    """Drop the check that has become too old, if it found nothing wrong; each new check looks at the one that falls
    out."""
    falling_out = sa.select(checks.c.id, checks.c.found).order_by(checks.c.id.desc()).offset(NEWER_CHECKS).limit(1)
    row = connection.execute(falling_out).first()
    if row is not None and row.found.get("severity") == "ok" and row.found.get("cause") is None:
        connection.execute(sa.delete(checks).where(checks.c.id == row.id))
