"""Records as other frameworks send them: what is taken, and what is read from it, in Arrow and in JSON."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from omni_rl.consistency.comparison import compare, compare_step
from omni_rl.consistency.records import SampleRecord
from omni_rl.errors import RecordError
from omni_rl.kinds import MIXED_STATE
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import SCHEMA, VERSION

from .bodies import MINIMAL, WHOLE, document, stream


def test_json_and_arrow_are_the_same_records() -> None:
    from_json = StepRecords.from_json(document(MINIMAL, WHOLE))
    from_arrow = StepRecords.from_arrow(from_json.to_arrow())
    assert from_arrow.to_json() == from_json.to_json() == {"schema": VERSION, "records": [MINIMAL, WHOLE]}
    assert from_arrow.digest == from_json.digest
    assert StepRecords.from_payload(from_json.payload).digest == from_json.digest
    assert from_arrow.row(1).to_json()["records"] == [WHOLE]
    assert (len(from_json), from_json.tokens) == (2, 4)


def test_numpy_arrays_are_taken() -> None:
    arrays = MINIMAL | {name: np.array(MINIMAL[name]) for name in ("rollout_logprobs", "train_logprobs")}
    assert StepRecords.of([arrays]).digest == StepRecords.from_json(document(MINIMAL)).digest


@pytest.mark.parametrize("change", ["value", "order", "null"])
def test_the_digest_sees_every_change(change: str) -> None:
    other = dict(MINIMAL, sample="b")
    changed = {
        "value": [MINIMAL, dict(other, train_logprobs=[-1.5, -2.0000000000000004])],
        "order": [other, MINIMAL],
        "null": [MINIMAL, dict(other, loss_mask=[True, True])],
    }[change]
    assert StepRecords.of(changed).digest != StepRecords.of([MINIMAL, other]).digest


def test_the_digest_does_not_see_how_records_were_laid_out() -> None:
    records = [dict(MINIMAL, sample=f"s{i}") for i in range(5)] + [WHOLE]
    whole = StepRecords.of(records)
    chunks = pa.concat_tables([whole.table.slice(0, 2), whole.table.slice(2)])
    assert StepRecords.from_arrow(stream(chunks)).digest == whole.digest
    wide = chunks.set_column(
        chunks.schema.get_field_index("ids"), "ids", chunks["ids"].cast(pa.large_list(pa.int64()))
    ).replace_schema_metadata(SCHEMA.metadata)
    assert StepRecords.from_arrow(stream(wide)).digest == whole.digest


def test_float32_is_exact_and_narrow_integers_are_taken() -> None:
    table = pa.table(
        {
            "sample": pa.array(["a"], pa.large_string()),
            "rollout_logprobs": pa.array([[-0.1]], pa.list_(pa.float32())),
            "train_logprobs": pa.array([[-0.25]], pa.large_list(pa.float64())),
            "ids": pa.array([[7]], pa.list_(pa.int8())),
        }
    ).replace_schema_metadata(SCHEMA.metadata)
    columns = StepRecords.from_arrow(stream(table)).columns
    assert columns.rollout_logprobs[0] == np.float64(np.float32(-0.1))
    assert columns.kinds == ["text"]


def test_figures_from_the_wire_are_those_of_the_records() -> None:
    records = StepRecords.from_json(document(MINIMAL, {**WHOLE, "loss_mask": None, "version_spans": None}))
    plain = [
        SampleRecord("a", "text", 0, np.array([-1.0, -2.0]), np.array([-1.5, -2.0])),
        SampleRecord(
            "whole",
            "image",
            3,
            np.array([-1.0, -2.5]),
            np.array([-1.25, -2.5]),
            np.array([[[0], [1]], [[2], [3]], [[0], [1]], [[2], [3]]], np.int16),
            np.array([[[0], [1]], [[2], [3]], [[0], [1]], [[2], [2]]], np.int16),
            np.full((4, 2), 2.0**-20, np.float32),  # a tie
        ),
    ]
    found = compare_step(records.columns)
    assert found.overall == compare(plain)
    assert found.overall.metrics.router_flips == found.overall.metrics.excluded_tokens == 1


def test_spans_of_mixed_state_are_figures_of_their_own() -> None:
    found = compare_step(StepRecords.from_json(document(MINIMAL, {**WHOLE, "loss_mask": None})).columns)
    assert {kind: comparison.metrics.tokens for kind, comparison in found.by_kind.items()} == {
        "text": 2,
        "image": 1,
        MIXED_STATE: 1,  # it follows a tie, but without it nothing of its kind would be left
    }
    assert found.by_kind[MIXED_STATE].metrics.excluded_tokens == 0
    assert found.overall.metrics.excluded_tokens == 0


def test_a_loss_mask_of_some_rows_leaves_the_others_whole() -> None:
    records = StepRecords.of([MINIMAL, dict(MINIMAL, sample="b", loss_mask=[False, True])])
    mask = records.columns.loss_mask
    assert mask is not None
    assert mask.tolist() == [True, True, False, True]


@pytest.mark.parametrize("text", ["NaN", "null"])
def test_a_logprob_that_is_no_number_is_a_finding_not_an_error(text: str) -> None:
    body = document(MINIMAL).replace("-1.5", text)
    records = StepRecords.from_json(body)
    assert math.isnan(records.columns.train_logprobs[0])
    assert math.isnan(compare_step(records.columns).overall.metrics.gen_kl_error)
    assert records.to_json()["records"][0]["train_logprobs"] == [None, -2.0]


@pytest.mark.parametrize("text", ["-Infinity", "null"])
def test_an_id_that_could_not_be_sampled_has_no_logprob(text: str) -> None:
    top = {"rollout_top_ids": [7, 9, 8, 7], "rollout_top_logprobs": [-1.0, -42.0, -2.5, -3.0]}
    records = StepRecords.from_json(document(MINIMAL | top).replace("-42.0", text))
    assert records.table["rollout_top_logprobs"].to_pylist() == [[-1.0, -math.inf, -2.5, -3.0]]
    assert records.to_json()["records"][0]["rollout_top_logprobs"] == [-1.0, None, -2.5, -3.0]
    assert StepRecords.from_json(json.dumps(records.to_json())).digest == records.digest


def test_a_stream_has_the_columns_that_a_record_fills() -> None:
    table = pa.ipc.open_stream(
        StepRecords.of([MINIMAL, {**MINIMAL, "sample": "b", "reward": 1.0}]).to_arrow()
    ).read_all()
    assert "reward" in table.column_names
    assert not {"prompt_text", "margins"} & set(table.column_names)
    assert pa.ipc.open_stream(StepRecords.of([]).to_arrow()).schema.names


def test_records_that_were_packed_are_read_again() -> None:
    records = StepRecords.of([WHOLE, MINIMAL])
    for kept in (records, records.row(1)):
        packed = kept.packed()
        assert StepRecords.from_payload(packed).digest == kept.digest
        assert len(packed) < len(kept.to_arrow())


def test_records_that_were_kept_with_compressed_buffers_are_read_still() -> None:
    """Ledgers that were written before records were packed have them."""
    records, sink = StepRecords.of([WHOLE, MINIMAL]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, records.table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(records.table)
    assert StepRecords.from_payload(sink.getvalue().to_pybytes()).digest == records.digest


def test_lists_of_numpys_integers_are_as_plain_ones() -> None:
    names = [name for name, value in WHOLE.items() if isinstance(value, list) and value and isinstance(value[0], int)]
    assert names
    arrays = WHOLE | {name: np.array(WHOLE[name]) for name in names}
    assert StepRecords.of([arrays, MINIMAL]).digest == StepRecords.of([WHOLE, MINIMAL]).digest
    with pytest.raises(RecordError, match=f"row 0, column {names[0]}"):
        StepRecords.of([arrays | {names[0]: np.array([2**40])}])
