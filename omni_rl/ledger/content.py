"""The digest of records' content: equal where the values are, however they were laid out or sent."""

import numpy as np
import pyarrow as pa
from blake3 import blake3
from numpy.typing import NDArray

from omni_rl.ledger.lists import lists, numbers, present, single
from omni_rl.ledger.schema import VERSION


def content_digest(table: pa.Table) -> str:
    """Return blake3 (hex) over the values of every column of a table of the schema; a null differs from any value."""
    hasher = blake3(f"{VERSION}:{len(table)}".encode())
    for name in table.column_names:
        column = single(table, name)
        if column.null_count < len(column):
            hasher.update(f";{name}:".encode())
            _feed(hasher, column)
    return hasher.hexdigest()


def _feed(hasher: blake3, column: pa.Array) -> None:
    valid = present(column)
    hasher.update(np.packbits(valid).data)
    if pa.types.is_list(column.type):
        rows = lists(column)
        hasher.update(rows.lengths.view(np.uint8).data)
        _feed(hasher, rows.flat)
    elif pa.types.is_struct(column.type):
        for number in range(column.type.num_fields):
            _feed(hasher, column.drop_null().field(number))
    elif pa.types.is_string(column.type):
        offsets, content = _texts(column.drop_null())
        hasher.update(np.diff(offsets).view(np.uint8).data)
        hasher.update(content)
    else:
        hasher.update(np.ascontiguousarray(numbers(column.drop_null())).view(np.uint8).data)


def _texts(column: pa.Array) -> tuple[NDArray[np.int64], pa.Buffer | bytes]:
    """Return where each of a column's strings (without nulls) begins in the UTF-8 of all, int64 [n + 1], and that
    UTF-8."""
    _, offsets, content = column.buffers()
    # Of no strings, Arrow lets even the one offset that it asks for be left out.
    if not len(column) or offsets is None or content is None:
        return np.zeros(len(column) + 1, np.int64), b""
    # The buffer may end in bytes that are no whole offset: Arrow asks only that it is long enough.
    ends = np.frombuffer(offsets, np.int32, len(column) + 1, 4 * column.offset).astype(np.int64)
    return ends, content[int(ends[0]) : int(ends[-1])]
