"""Writes a run as Parquet files, for notebooks: steps, figures, bins, samples with their tokens, events, incidents,
syncs and checks."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from omni_rl.errors import LedgerError
from omni_rl.ledger import queries
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import SCHEMA
from omni_rl.ledger.tables import (
    BIN_FIGURES,
    FIGURES,
    Document,
    attempts,
    bins,
    checks,
    decisions,
    events,
    figures,
    incidents,
    samples,
    steps,
    syncs,
)

ROWS = 8192
"""Rows of one row group; a group of samples, which have their tokens, has fewer."""
SAMPLES = 256

_STEP = [pa.field("attempt", pa.int64()), pa.field("step", pa.int64())]
_TYPES = {
    sa.Text: pa.string(),
    sa.BigInteger: pa.int64(),
    sa.Integer: pa.int64(),
    sa.SmallInteger: pa.int64(),
    sa.Double: pa.float64(),
}


def export(ledger: Ledger, run: str, directory: Path) -> list[Path]:
    """Write `directory`/{steps,figures,bins,samples,events,incidents,syncs,checks}.parquet, each file whole or not at
    all, all from one snapshot, and return their paths.

    Documents are JSON text, and figures that are not numbers are NaN. Samples have the published schema's columns. The
    checks are those of the run's steps and those of the probe, whose `run` is null.

    Raises:
        NotFoundError: there is no such run.
        LedgerError: the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with ledger.database.read() as connection:
            queries.one_run(connection, run)
            return [
                _write(directory / f"{name}.parquet", schema, tables)
                for name, (schema, tables) in _contents(connection, run).items()
            ]
    except OSError as error:
        raise LedgerError(f"{directory} cannot be written: {error.strerror}") from error


def _contents(connection: sa.Connection, run: str) -> dict[str, tuple[pa.Schema, Iterator[pa.Table]]]:
    of_run = (attempts.c.run == run,)
    step_columns = [steps.c[name] for name in ("sealed", "severity", "samples", "tokens", "weight_version")]
    texts = [_text(steps.c[name]) for name in ("training", "verdict", "flips")]
    synced = [syncs.c[n] for n in ("number", "sync", "key", "epoch", "version", "previous_version", "mode", "started")]
    ended = [syncs.c.finished, decisions.c.decision, _text(syncs.c.result)]
    of_incidents = [_text(c) if isinstance(c.type, Document) else c for c in incidents.c if c.key != "told"]
    plain = {
        "steps": _of_steps(steps, [*step_columns, *texts], of_run),
        "figures": _of_steps(figures, [figures.c.kind, *(figures.c[name] for name in FIGURES)], of_run),
        "bins": _of_steps(bins, [bins.c.kind, bins.c.first, bins.c.last, *(bins.c[n] for n in BIN_FIGURES)], of_run),
        "events": (
            sa.select(events.c.id, events.c.at, events.c.kind, _text(events.c.data))
            .where(events.c.run == run)
            .order_by(events.c.id)
        ),
        "incidents": sa.select(*of_incidents).where(incidents.c.run == run).order_by(incidents.c.id),
        "syncs": (
            sa.select(*synced, *ended)
            .select_from(syncs.outerjoin(decisions, decisions.c.sync == syncs.c.sync))
            .where(syncs.c.run == run)
            .order_by(syncs.c.number)
        ),
        "checks": (
            sa.select(checks.c.id, checks.c.at, checks.c.run, checks.c.attempt, checks.c.step, _text(checks.c.found))
            .where(sa.or_(checks.c.run == run, checks.c.run.is_(None)))
            .order_by(checks.c.id)
        ),
    }
    contents = {}
    for name, query in plain.items():
        schema = _schema(query)
        contents[name] = schema, _tables(connection, query, schema)
    contents["samples"] = _SAMPLES, _sample_tables(connection, run)
    return contents


def _of_steps(
    table: sa.Table, columns: Sequence[sa.ColumnElement[Any]], where: Sequence[sa.ColumnElement[bool]]
) -> sa.Select[Any]:
    return (
        sa.select(attempts.c.attempt, table.c.step, *columns)
        .join_from(table, attempts, attempts.c.id == table.c.attempt_id)
        .where(*where)
        .order_by(*table.primary_key)
    )


def _text(document: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.type_coerce(document, sa.Text).label(document.key)


def _schema(query: sa.Select[Any]) -> pa.Schema:
    fields = []
    for column in query.selected_columns:
        kind = column.type.impl if isinstance(column.type, sa.TypeDecorator) else column.type
        fields.append(pa.field(str(column.key), next(_TYPES[t] for t in type(kind).__mro__ if t in _TYPES)))
    return pa.schema(fields)


def _tables(connection: sa.Connection, query: sa.Select[Any], schema: pa.Schema) -> Iterator[pa.Table]:
    rows = iter(connection.execution_options(yield_per=ROWS).execute(query))
    while part := [tuple(row) for row in islice(rows, ROWS)]:
        columns = zip(*part, strict=True)
        yield pa.table([pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)], schema=schema)


_OF_SAMPLE = (pa.field("place", pa.int64()), pa.field("figures", pa.string()), pa.field("rank", pa.int64()))
_SAMPLES = pa.schema([*_STEP, *_OF_SAMPLE, *SCHEMA])


def _sample_tables(connection: sa.Connection, run: str) -> Iterator[pa.Table]:
    columns = [samples.c.rank, samples.c.place, _text(samples.c.figures), samples.c.record]
    query = _of_steps(samples, columns, (attempts.c.run == run,)).order_by(None)
    query = query.order_by(samples.c.attempt_id, samples.c.step, samples.c.place)
    rows = _with_records(connection.execution_options(yield_per=SAMPLES).execute(query))
    while part := list(islice(rows, SAMPLES)):
        records = pa.concat_tables([record for _, record in part])
        where: Mapping[str, Any] = {
            name: pa.array([getattr(row, name) for row, _ in part], _SAMPLES.field(name).type)
            for name in _SAMPLES.names[: -len(SCHEMA)]
        }
        yield pa.table([*where.values(), *records.columns], schema=_SAMPLES)


def _with_records(rows: Iterable[Any]) -> Iterator[tuple[Any, pa.Table]]:
    """Yield each stored sample's row with its record, which the row of the first sample of its step may have."""
    records = StepRecords(pa.table({}))
    for row in rows:
        if row.record:
            records = StepRecords.from_payload(bytes(row.record))
        yield row, records.at_place(row.place).table


def _write(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> Path:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
