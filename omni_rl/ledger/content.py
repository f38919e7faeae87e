"""The digest of records' content: equal where the values are, however they were laid out or sent."""

import numpy as np
import pyarrow as pa
from blake3 import blake3

from omni_rl.ledger.lists import lists, numbers, present, single
from omni_rl.ledger.schema import VERSION


def content_digest(table: pa.Table) -> str:
    """blake3 (hex) over the values of every column of a table of the schema, nulls told from values."""
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
            _feed(hasher, column.field(number).filter(pa.array(valid)))
    elif pa.types.is_string(column.type):
        texts = [text.encode() for text in column.drop_null().to_pylist()]
        hasher.update(np.array([len(text) for text in texts], np.int64).view(np.uint8).data)
        hasher.update(b"".join(texts))
    else:
        hasher.update(np.ascontiguousarray(numbers(column.drop_null())).view(np.uint8).data)
