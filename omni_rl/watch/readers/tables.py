"""Reads records of the published schema (`omni_rl.ledger.schema`) from files: Parquet, Arrow (stream or file), JSON
(lines).

Beside the schema's columns, `step` and `rank` may say which step a record is of, and which rank has it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omni_rl.errors import RecordError
from omni_rl.kinds import KINDS
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import VERSION, VERSION_KEY, RecordLimits
from omni_rl.ledger.wire import as_stream
from omni_rl.watch.readers.lines import Located, checked

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
"""The first bytes of such files."""
PLACES = ("step", "rank")
WITHOUT = (
    (
        {"completion", "advantage"},
        "TRL's completions have texts and rewards, no logprobs, and its reward functions never get any. Watch the "
        "trainer: omni_rl.watch.trl",
    ),
    (
        {"input", "output", "score"},
        "verl's rollout dump has texts and scores, no logprobs, and its reward functions run before there are any. "
        "Watch the run: set OMNI_RL_URL",
    ),
)
"""The columns by which a dump is known that has no logprobs, and what to do instead."""

Place = tuple[int | None, int | None]
"""A step and a rank, where the file says them."""


def is_table(content: bytes) -> bool:
    """Return whether a file is Parquet or Arrow, by its first bytes."""
    return content.startswith((PARQUET, ARROW_FILE, ARROW_STREAM))


def read_table(path: Path, content: bytes) -> Iterator[tuple[Place, StepRecords]]:
    """Yield the records of a Parquet or Arrow file, by step and rank.

    Raises:
        RecordError: The file is damaged, or its columns are not the schema's.
    """
    try:
        source = pa.BufferReader(content)
        if content.startswith(PARQUET):
            table = pq.read_table(source)
        elif content.startswith(ARROW_FILE):
            table = pa.ipc.open_file(source).read_all()
        else:
            table = pa.ipc.open_stream(source).read_all()
        table.validate(full=True)
        for place, part in _by_place(path, table):
            yield place, _records(path, part)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last comes of damaged names
        raise RecordError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def read_rows(path: Path, located: Sequence[Located]) -> Iterator[tuple[Place, StepRecords]]:
    """Yield the records of JSON lines, by step and rank.

    Raises:
        RecordError: A line is no record of the schema; the error names its number.
    """
    limits = RecordLimits(kinds=_kinds([row.get("kind") for _, row in located]))
    places: dict[Place, list[Located]] = {}
    for where, row in located:
        refuse_without_logprobs(where, row.keys())
        step, rank = (_whole(where, name, row.get(name)) for name in PLACES)
        alone = {name: value for name, value in row.items() if name not in PLACES}
        places.setdefault((step, rank), []).append((where, alone))
    for place, rows in places.items():
        yield place, checked(path, rows, limits)


def read_document(path: Path, document: Mapping[str, Any]) -> Iterator[tuple[Place, StepRecords]]:
    """Yield the records of one JSON document, the form in which a part is posted."""
    if document.get("schema") != VERSION:
        raise RecordError(f'{path}: "schema" is {document.get("schema")!r}; expected {VERSION}')
    records = document.get("records")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise RecordError(f"{path}: records must be a list of objects")
    yield from read_rows(path, [(f"{path}, record {number}", record) for number, record in enumerate(records)])


def refuse_without_logprobs(where: object, columns: Any) -> None:
    """Raise `RecordError` for a dump of texts and scores alone, by the framework that writes it."""
    if "rollout_logprobs" in columns:
        return
    for known, advice in WITHOUT:
        if known <= set(columns):
            raise RecordError(f"{where}: {advice}")


def _by_place(path: Path, table: pa.Table) -> Iterator[tuple[Place, pa.Table]]:
    if len(set(table.column_names)) < len(table.column_names):
        raise RecordError(f"{path}: a column is there twice")
    refuse_without_logprobs(path, table.column_names)
    present = [name for name in PLACES if name in table.column_names]
    for name in present:
        if not pa.types.is_integer(table.schema.field(name).type) or table.column(name).null_count:
            raise RecordError(f"{path}: column {name} is {table.schema.field(name).type}; whole numbers are expected")
    plain = table.drop_columns(present)
    if not present:
        yield (None, None), plain
        return
    for found in table.select(present).group_by(present, use_threads=False).aggregate([]).to_pylist():
        here = pa.chunked_array([pa.nulls(len(table), pa.bool_()).fill_null(True)])
        for name, value in found.items():
            here = pc.and_(here, pc.equal(table.column(name), value))
        yield (found.get("step"), found.get("rank")), plain.filter(here)


def _records(path: Path, table: pa.Table) -> StepRecords:
    """Check a table as a posted part is checked: as a stream of the schema's version, which a file may leave unsaid."""
    empty = [name for name in table.column_names if pa.types.is_null(table.schema.field(name).type)]
    table = table.drop_columns(empty)
    metadata = table.schema.metadata or {}
    version = {VERSION_KEY: metadata.get(VERSION_KEY, VERSION.encode())}
    kinds = table.column("kind").unique().to_pylist() if "kind" in table.column_names else ()
    stream = as_stream(table.replace_schema_metadata(version))
    try:
        return StepRecords.from_arrow(stream, RecordLimits(kinds=_kinds(kinds)))
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None


def _kinds(named: Iterable[Any]) -> tuple[str, ...]:
    """Return our kinds and those that the file names beside them: a run declares its own kinds, a file has them."""
    return (*KINDS, *sorted({kind for kind in named if isinstance(kind, str)} - {*KINDS}))


def _whole(where: str, name: str, value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise RecordError(f"{where}: {name} is {json.dumps(value)}, not a whole number")
