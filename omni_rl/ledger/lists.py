"""A column of lists as numpy sees it: one flat array, and the positions where each row's values begin."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class Lists(NamedTuple):
    """The values of N rows. `flat` holds them all, row n's at [offsets[n], offsets[n + 1]); a null row has none.

    `present` bool [N] says which rows are not null.
    """

    flat: pa.Array
    offsets: NDArray[np.int64]
    present: NDArray[np.bool_]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def row_of(self, value: int) -> int:
        """Return the row that a position in `flat` belongs to."""
        return int(np.searchsorted(self.offsets, value, side="right")) - 1

    def numbers(self) -> NDArray[Any]:
        return numbers(self.flat)


def lists(column: pa.Array) -> Lists:
    """Return the lists of a list column, however it is sliced and whatever values lie under its nulls."""
    if column.null_count == len(column):  # most columns of most records
        return Lists(column.flatten(), np.zeros(len(column) + 1, np.int64), np.zeros(len(column), np.bool_))
    if not column.null_count:
        offsets = numbers(column.offsets).astype(np.int64)
        return Lists(column.flatten(), offsets - offsets[0], present(column))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return Lists(column.flatten(), np.cumsum(np.concatenate([[0], lengths]), dtype=np.int64), present(column))


def present(column: pa.Array) -> NDArray[np.bool_]:
    if column.null_count == 0:
        return np.ones(len(column), np.bool_)
    result: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return result


def numbers(column: pa.Array) -> NDArray[Any]:
    """Return a column's values, which must have no nulls; without a copy where the types allow it."""
    result: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return result


def single(table: pa.Table, name: str) -> pa.Array:
    """Return a table's column as one array."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
