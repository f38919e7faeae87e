"""Arrow streams whose columns have no values and no offsets, which the format asks every reader to take."""

from typing import Any

import pyarrow as pa
import pytest

from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import SCHEMA

ROW: dict[str, Any] = {"sample": "a", "rollout_logprobs": [], "train_logprobs": []}
NOTHING = pa.py_buffer(b"")


def without_offsets(kind: pa.DataType) -> pa.Array:
    """An array of no values whose buffers are empty, at every depth."""
    if pa.types.is_list(kind):
        return pa.Array.from_buffers(kind, 0, [None, NOTHING], children=[without_offsets(kind.value_type)])
    if pa.types.is_string(kind):
        return pa.Array.from_buffers(kind, 0, [None, NOTHING, NOTHING])
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays([without_offsets(field.type) for field in kind], fields=list(kind))
    return pa.array([], kind)


@pytest.mark.parametrize("name", ["token_texts", "version_spans", "media", "ids", "loss_mask"])
def test_lists_of_nothing_are_the_same_with_offsets_and_without(name: str) -> None:
    plain = StepRecords.of([{**ROW, name: []}])
    field = SCHEMA.field(name)
    column = pa.ListArray.from_arrays(pa.array([0, 0], pa.int32()), without_offsets(field.type.value_type), field.type)
    at = plain.table.schema.get_field_index(name)
    body = StepRecords(plain.table.set_column(at, field, column)).to_arrow()
    assert StepRecords.from_arrow(body).digest == plain.digest
