"""Reads Arrow streams and JSON documents as tables of the published schema, and refuses all others."""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omni_rl.consistency.shown import number_or_none
from omni_rl.errors import RecordError
from omni_rl.ledger.schema import COLUMNS, SCHEMA, VERSION, VERSION_KEY, RecordLimits
from omni_rl.pieces import load

NAMES = tuple(column.name for column in COLUMNS)
_ZSTD = b"\x28\xb5\x2f\xfd"
"""The bytes with which a zstd frame begins (RFC 8878, section 3.1.1); an Arrow stream begins otherwise."""
NULLS = {"rollout_logprobs": math.nan, "train_logprobs": math.nan, "rollout_top_logprobs": -math.inf}
"""The number that null stands for in columns whose numbers need not be finite, since JSON has none that are not."""


def read_arrow(body: bytes | memoryview, limits: RecordLimits) -> pa.Table:
    """Return a table with every column of the schema, in its types, from an Arrow IPC stream.

    Integers and floats of other widths and large lists and strings are cast if no value changes by it (a float32 is
    exact in float64). Compressed buffers are refused: their size is not known before they are unpacked.

    Raises:
        RecordError: this is no such stream, it has another schema, or it has more rows than `limits` allow.
    """
    try:
        reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(body))
        first = reader.read_next_message()
        if first.type != "schema":  # else Arrow would take it for a schema, and read wherever it points
            raise RecordError(f"the stream begins with a {first.type}; expected its schema")
        schema = pa.ipc.read_schema(first)
        _check_schema(schema)
        batches: list[pa.RecordBatch] = []
        rows = 0
        for message in _messages(reader):
            if message.type != "record batch" or _is_compressed(message.metadata):
                raise RecordError(
                    f"message {len(batches) + 1} of the stream is a {message.type}"
                    + (" with compressed buffers; send them uncompressed" if message.type == "record batch" else "")
                )
            batch = pa.ipc.read_record_batch(message, schema)
            rows += batch.num_rows
            if rows > limits.records:
                raise RecordError(f"more than {limits.records} records in one part; send them as several parts")
            batches.append(batch)
        table = pa.Table.from_batches(batches, schema)
        table.validate(full=True)
        return _in_order({name: _cast(table, name) for name in schema.names}, rows)
    except (pa.ArrowException, OSError, StopIteration, UnicodeDecodeError, struct.error) as error:
        raise RecordError(f"not an Arrow IPC stream of {VERSION}: {_first_line(error)}") from None


def write_arrow(table: pa.Table) -> bytes:
    """Return the table as an Arrow IPC stream of one batch; columns of nulls are left out."""
    rows = len(table)
    used = [number for number, column in enumerate(table.columns) if column.null_count < rows or not rows]
    return as_stream(table.select(used).combine_chunks())


def as_stream(table: pa.Table) -> bytes:
    """Return any table as an Arrow IPC stream, with the metadata of its schema."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    result: bytes = sink.getvalue().to_pybytes()
    return result


def pack(table: pa.Table) -> bytes:
    """Return `write_arrow`'s stream compressed as a whole: one record has many small buffers, and compressing each
    alone takes as long as compressing all."""
    packed: bytes = pa.Codec("zstd").compress(write_arrow(table), asbytes=True)
    return packed


def read_trusted(payload: bytes) -> pa.Table:
    """Return the table of a stored payload, which was read by `read_arrow`, or written by `write_arrow` or `pack`,
    before."""
    stream = pa.BufferReader(payload)
    if payload.startswith(_ZSTD):
        stream = pa.CompressedInputStream(stream, "zstd")
    table = pa.ipc.open_stream(stream).read_all()
    return _in_order({name: _cast(table, name) for name in table.column_names}, len(table))


def read_json(body: bytes | str, limits: RecordLimits) -> pa.Table:
    """Return a table with every column of the schema from `{"schema": "omni_rl.step/1", "records": [{column: value}]}`;
    null in logprobs is NaN, and among those of an engine's likeliest ids -inf.

    Raises:
        RecordError: this is no such document.
    """
    try:
        document = load(body if isinstance(body, bytes) else body.encode())
    except ValueError as error:
        raise RecordError(str(error)) from None
    if not isinstance(document, dict) or document.get("schema") != VERSION:
        raise RecordError(f'a JSON document of records has "schema": "{VERSION}"; {_found_schema(document)}')
    if unknown := sorted(document.keys() - {"schema", "records"}):
        raise RecordError(f"unknown keys beside schema and records: {', '.join(unknown)}")
    records = document.get("records")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise RecordError("records must be a list of objects")
    return table_of(records, limits)


def table_of(records: Sequence[Mapping[str, Any]], limits: RecordLimits) -> pa.Table:
    """Return rows of plain values (or arrays, for lists of numbers) as a table of the schema. Raises `RecordError`."""
    if len(records) > limits.records:
        raise RecordError(f"more than {limits.records} records in one part; send them as several parts")
    for row, record in enumerate(records):
        if unknown := sorted(set(record) - set(NAMES)):
            raise RecordError(f"row {row}: unknown columns {', '.join(unknown)}; {VERSION} has {', '.join(NAMES)}")
    columns = {}
    for column in COLUMNS:
        values = [record.get(column.name) for record in records]
        if any(value is not None for value in values):
            columns[column.name] = _array(column.name, column.type, values)
    return _in_order(columns, len(records))


def to_json(table: pa.Table) -> dict[str, Any]:
    """Return the JSON form. Columns that are null in a row are left out, so that null stands for a number that is not
    finite."""
    records = [{name: _plain(value) for name, value in row.items() if value is not None} for row in table.to_pylist()]
    return {"schema": VERSION, "records": records}


def _check_schema(schema: pa.Schema) -> None:
    version = (schema.metadata or {}).get(VERSION_KEY, b"").decode(errors="replace")
    if version != VERSION:
        found = f"it says {version!r}" if version else "it has none"
        raise RecordError(
            f"the stream's schema metadata must carry {VERSION_KEY.decode()} = {VERSION}; {found}. "
            "omni_rl.ledger.schema.SCHEMA is the schema"
        )
    unknown = [name for name in schema.names if name not in NAMES]
    if unknown:
        raise RecordError(f"unknown columns {', '.join(unknown)}; {VERSION} has {', '.join(NAMES)}")
    if len(set(schema.names)) < len(schema.names):
        raise RecordError("a column is there twice")
    for name in schema.names:
        if not _fits(schema.field(name).type, SCHEMA.field(name).type):
            raise RecordError(f"column {name} is {schema.field(name).type}; expected {SCHEMA.field(name).type}")
    if missing := [column.name for column in COLUMNS if column.required and column.name not in schema.names]:
        raise RecordError(f"columns {', '.join(missing)} are missing")


def _fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    kind = pa.types
    if kind.is_list(wanted):
        return (kind.is_list(given) or kind.is_large_list(given)) and _fits(given.value_type, wanted.value_type)
    if kind.is_struct(wanted):
        return kind.is_struct(given) and (
            [given.field(i).name for i in range(given.num_fields)]
            == [wanted.field(i).name for i in range(wanted.num_fields)]
            and all(_fits(given.field(i).type, wanted.field(i).type) for i in range(wanted.num_fields))
        )
    if kind.is_string(wanted):
        return bool(kind.is_string(given) or kind.is_large_string(given))
    if kind.is_integer(wanted):
        return bool(kind.is_integer(given))
    if kind.is_floating(wanted):
        return bool(kind.is_float32(given) or kind.is_float64(given))
    return bool(given == wanted)


def _cast(table: pa.Table, name: str) -> pa.ChunkedArray:
    column, wanted = table.column(name), SCHEMA.field(name).type
    if column.type == wanted:
        return column
    try:
        return column.cast(wanted)
    except pa.ArrowInvalid as error:
        raise RecordError(f"column {name}: {_first_line(error)}") from None


def _in_order(columns: Mapping[str, pa.Array | pa.ChunkedArray], rows: int) -> pa.Table:
    arrays = [columns[name] if name in columns else pa.nulls(rows, SCHEMA.field(name).type) for name in NAMES]
    return pa.table(arrays, schema=SCHEMA)


def _messages(reader: pa.ipc.MessageReader) -> Any:
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Return whether a record batch's flatbuffer has the field `compression` (Arrow's Message.fbs: Message.header is
    field 2, RecordBatch.compression field 3). Raises `struct.error` where an offset leads out of it."""
    data = metadata.to_pybytes()

    def field(table: int, number: int) -> int:
        vtable = table - struct.unpack_from("<i", data, table)[0]
        (size,) = struct.unpack_from("<H", data, vtable)
        at = 4 + 2 * number
        return int(struct.unpack_from("<H", data, vtable + at)[0]) if at < size else 0

    def follow(at: int) -> int:
        return at + int(struct.unpack_from("<I", data, at)[0])

    message = follow(0)
    return field(follow(message + field(message, 2)), 3) != 0


def _array(name: str, wanted: pa.DataType, values: list[Any]) -> pa.Array:
    read = _with_doubles(wanted)
    try:
        array = _of_whole_numbers(values, wanted) or pa.array(values, read).cast(wanted)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as whole:
        for row, value in enumerate(values):
            try:
                pa.array([value], read).cast(wanted)
            except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
                raise RecordError(f"row {row}, column {name}: {_first_line(error)}") from None
        # Each row can be read alone, but not beside the others: an empty text alone is a list of no pairs, say.
        raise RecordError(f"column {name}: {_first_line(whole)}") from None
    if name in NULLS and array.flatten().null_count:
        flat = array.flatten()
        array = _in_rows(pc.fill_null(flat, pa.scalar(NULLS[name], flat.type)), values)
    return array


def _of_whole_numbers(values: list[Any], wanted: pa.DataType) -> pa.Array | None:
    """Return lists of integers from numpy's arrays of integers, which Arrow would take one number at a time; None for
    other values."""
    given = [value for value in values if value is not None]
    if not pa.types.is_list(wanted) or not pa.types.is_integer(wanted.value_type):
        return None
    if not all(isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "i" for value in given):
        return None
    return _in_rows(pa.array(np.concatenate(given)).cast(wanted.value_type), values)


def _in_rows(flat: pa.Array, values: list[Any]) -> pa.Array:
    """Return a list column of the numbers `flat`, cut as `values` are, null where they are None."""
    offsets = np.cumsum([0, *(0 if value is None else len(value) for value in values)])
    missing = pa.array([value is None for value in values], pa.bool_())  # Arrow takes longer to infer the type
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=missing)


def _with_doubles(wanted: pa.DataType) -> pa.DataType:
    """Return the type with doubles for its integers: Arrow turns 1.5 into the integer 1 silently, but refuses the
    cast."""
    if pa.types.is_list(wanted):
        return pa.list_(_with_doubles(wanted.value_type))
    if pa.types.is_struct(wanted):
        return pa.struct([field.with_type(_with_doubles(field.type)) for field in wanted])
    return pa.float64() if pa.types.is_integer(wanted) else wanted


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return number_or_none(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _found_schema(document: Any) -> str:
    return f"this one has {document.get('schema')!r}" if isinstance(document, dict) else "this is not an object"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
