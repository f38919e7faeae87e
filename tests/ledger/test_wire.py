"""Streams and documents of records that are nearly right, and what is read from those that are right in other ways."""

import json
import math
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3

from omni_rl.errors import RecordError
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import SCHEMA, VERSION, RecordLimits

from .bodies import MINIMAL

TENSOR = {"name": "pixels", "rendered": "aa", "engine": "bb", "train": "cc"}
IMAGE = {"modality": "image", "offset": 0, "length": 0, "content": "0f" * 32, "tensors": [TENSOR]}
SPAN = {"version": "v", "start": 0, "end": 2, "mixed_state": True}


def stream(*batches: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def batch(**columns: pa.Array) -> pa.RecordBatch:
    """One record, with other columns or with columns of other types."""
    plain = {
        "sample": pa.array(["a"]),
        "rollout_logprobs": pa.array([[-1.0, -2.0]]),
        "train_logprobs": pa.array([[-1.5, -2.0]]),
    }
    return pa.RecordBatch.from_pydict(plain | columns).replace_schema_metadata(SCHEMA.metadata)


DOCUMENTS = [
    ("[]", f'has "schema": "{VERSION}"; this is not an object'),
    ('{"records": []}', "this one has None"),
    ('{"schema": "omni_rl.step/0", "records": []}', "this one has 'omni_rl.step/0'"),
    (f'{{"schema": "{VERSION}", "records": [], "z": 1, "b": 2}}', "unknown keys beside schema and records: b, z$"),
    (f'{{"schema": "{VERSION}"}}', "records must be a list of objects"),
    (f'{{"schema": "{VERSION}", "records": {{}}}}', "records must be a list of objects"),
    (f'{{"schema": "{VERSION}", "records": [{{}}, 1]}}', "records must be a list of objects"),
]


@pytest.mark.parametrize(("body", "message"), DOCUMENTS, ids=[message for _, message in DOCUMENTS])
def test_a_document_says_what_is_wrong_with_it(body: str, message: str) -> None:
    for sent in (body, body.encode()):
        with pytest.raises(RecordError, match=message):
            StepRecords.from_json(sent)


def test_a_document_without_records_is_a_part_without_records() -> None:
    found = StepRecords.from_json(json.dumps({"schema": VERSION, "records": []}))
    assert (len(found), found.tokens) == (0, 0)
    assert StepRecords.from_payload(found.payload).digest == found.digest
    assert len(found.columns.samples) == 0


# Columns of other types, and what is said of them (None: they are taken).
COLUMNS: dict[str, tuple[dict[str, pa.Array], str | None]] = {
    "wide integers": ({"ids": pa.array([[1, 2]], pa.list_(pa.int64()))}, None),
    "unsigned ones": ({"ids": pa.array([[1, 2]], pa.list_(pa.uint8()))}, None),
    "an integer too wide": (
        {"ids": pa.array([[1, 2**31]], pa.list_(pa.int64()))},
        "^column ids: Integer value 2147483648 not in range",
    ),
    "floats for integers": ({"ids": pa.array([[1.0, 2.0]])}, "column ids is list<.*double>; expected list<.*int32>"),
    "single floats": ({"train_logprobs": pa.array([[-1.5, -2.0]], pa.list_(pa.float32()))}, None),
    "half floats": (
        {"train_logprobs": pa.array([np.array([-1.5, -2.0], np.float16)], pa.list_(pa.float16()))},
        "column train_logprobs is list<.*halffloat>; expected list<.*double>",
    ),
    "integers for floats": (
        {"train_logprobs": pa.array([[-1, -2]])},
        "column train_logprobs is list<.*int64>; expected list<.*double>",
    ),
    "large lists": ({"train_logprobs": pa.array([[-1.5, -2.0]], pa.large_list(pa.float64()))}, None),
    "no list": ({"train_logprobs": pa.array([-1.5])}, "column train_logprobs is double; expected list<.*double>"),
    "large strings": ({"train_version": pa.array(["v"], pa.large_string())}, None),
    "bytes for strings": ({"train_version": pa.array([b"v"])}, "column train_version is binary; expected string"),
    "integers for booleans": (
        {"loss_mask": pa.array([[1, 0]])},
        "column loss_mask is list<.*int64>; expected list<.*bool>",
    ),
    "wide integers in items": (
        {
            "version_spans": pa.array(
                [[SPAN]],
                pa.list_(
                    pa.struct(
                        [
                            ("version", pa.string()),
                            ("start", pa.int64()),
                            ("end", pa.int8()),
                            ("mixed_state", pa.bool_()),
                        ]
                    )
                ),
            )
        },
        None,
    ),
    "an item that lacks a field": (
        {"version_spans": pa.array([[{"version": "v", "start": 0, "end": 2}]])},
        "column version_spans is list<.*; expected list<.*mixed_state: bool",
    ),
    "items that are no objects": (
        {"version_spans": pa.array([[1]])},
        "column version_spans is list<.*int64>; expected",
    ),
    "a field of another type": (
        {"version_spans": pa.array([[SPAN | {"start": 0.0}]])},
        r"column version_spans is list<.*start: double.*; expected list<.*start: int32",
    ),
    "two that nobody knows": ({"extra": pa.array([1]), "b": pa.array([1])}, "unknown columns extra, b; omni_rl.step/1"),
}


@pytest.mark.parametrize(("columns", "message"), COLUMNS.values(), ids=list(COLUMNS))
def test_columns_of_other_types_are_cast_where_no_value_changes(
    columns: dict[str, pa.Array], message: str | None
) -> None:
    body = stream(batch(**columns))
    if message is not None:
        with pytest.raises(RecordError, match=message):
            StepRecords.from_arrow(body)
        return
    plain = MINIMAL | {name: column.to_pylist()[0] for name, column in columns.items()}
    assert StepRecords.from_arrow(body).digest == StepRecords.of([plain]).digest


def test_a_column_that_is_there_twice_is_refused() -> None:
    one = batch()
    schema = pa.schema([*one.schema, one.schema.field("sample")], metadata=SCHEMA.metadata)
    twice = pa.RecordBatch.from_arrays([*one.columns, one.column("sample")], schema=schema)
    with pytest.raises(RecordError, match="a column is there twice"):
        StepRecords.from_arrow(stream(twice))
    with pytest.raises(RecordError, match="columns rollout_logprobs, train_logprobs are missing"):
        StepRecords.from_arrow(stream(one.select(["sample"])))


def test_a_stream_of_several_batches_is_read_whole_and_bounded_whole() -> None:
    batches = [batch(sample=pa.array([name])) for name in "abc"]
    assert StepRecords.from_arrow(stream(*batches), RecordLimits(records=3)).samples == ["a", "b", "c"]
    with pytest.raises(RecordError, match="more than 2 records in one part; send them as several parts"):
        StepRecords.from_arrow(stream(*batches), RecordLimits(records=2))


def test_a_stream_begins_with_its_schema_and_has_records_only() -> None:
    body = stream(batch())
    messages = [message.serialize().to_pybytes() for message in pa.ipc.MessageReader.open_stream(body)]
    with pytest.raises(RecordError, match="the stream begins with a record batch; expected its schema"):
        StepRecords.from_arrow(messages[1])
    with pytest.raises(RecordError, match=r"message 2 of the stream is a schema$"):
        StepRecords.from_arrow(messages[0] + messages[1] + messages[0])
    assert len(StepRecords.from_arrow(messages[0] + messages[1])) == 1
    none = StepRecords.from_arrow(messages[0])
    assert (len(none), none.tokens, none.digest) == (0, 0, StepRecords.of([]).digest)


def test_a_value_is_found_by_its_row_and_its_place_there() -> None:
    rows: list[dict[str, Any]] = [MINIMAL | {"sample": str(n), "ids": [1, 2]} for n in range(6)]
    for row in range(6):
        for value in (0, 1):
            wrong = [*rows]
            wrong[row] = rows[row] | {"ids": [-1 if at == value else 1 for at in (0, 1)]}
            for others in (wrong, [MINIMAL | {"sample": "without"}, *wrong]):
                at = row + len(others) - len(wrong)
                with pytest.raises(RecordError, match=rf"^row {at} \(sample '{row}'\), column ids: value {value} is"):
                    StepRecords.of(others)


@pytest.mark.parametrize(
    "value",
    [np.array(["7", "8"]), np.array([True, False]), np.array([7.5, 8.0]), np.array([[7, 8]]), np.array([7, 2**31])],
    ids=["texts", "truths", "halves", "two dimensions", "too large"],
)
def test_arrays_that_are_no_list_of_whole_numbers_are_refused(value: Any) -> None:
    with pytest.raises(RecordError, match=r"^row 1, column ids: "):
        StepRecords.of([MINIMAL, MINIMAL | {"sample": "b", "ids": value}])


def test_arrays_and_lists_may_stand_beside_each_other_and_rows_without() -> None:
    values = [np.array([7, 8], np.int16), None, np.array([], np.int64), np.array([9, 10], np.uint32), [11, 12]]
    rows = [MINIMAL | {"sample": str(n), "prompt_ids": value} for n, value in enumerate(values)]
    found = StepRecords.of(rows).table["prompt_ids"].to_pylist()
    assert found == [[7, 8], None, [], [9, 10], [11, 12]]
    assert StepRecords.of(rows[:3]).table["prompt_ids"].to_pylist() == [[7, 8], None, []]


def test_numbers_that_are_not_finite_are_null_in_json_however_deep() -> None:
    row = MINIMAL | {"reward": math.inf, "train_logprobs": [-math.inf, math.nan], "media": [IMAGE]}
    (found,) = StepRecords.of([row]).to_json()["records"]
    assert (found["reward"], found["train_logprobs"], found["media"]) == (None, [None, None], [IMAGE])
    assert found["rollout_logprobs"] == [-1.0, -2.0]


def test_null_among_logprobs_of_one_row_changes_no_other_row() -> None:
    rows = [MINIMAL | {"sample": name} for name in "abc"]
    rows[1] = rows[1] | {
        "train_logprobs": [None, -3.0],
        "rollout_top_ids": [1, 2],
        "rollout_top_logprobs": [None, -1.0],
    }
    found = StepRecords.of(rows).table
    assert str(found["train_logprobs"].to_pylist()) == str([[-1.5, -2.0], [math.nan, -3.0], [-1.5, -2.0]])
    assert found["rollout_top_logprobs"].to_pylist() == [None, [-math.inf, -1.0], None]


def test_a_value_that_cannot_be_read_is_answered_in_one_line() -> None:
    with pytest.raises(RecordError, match=r"^row 1, column ids: .") as refused:
        StepRecords.of([MINIMAL, MINIMAL | {"sample": "b", "ids": ["x\ny", 2]}])
    assert "\n" not in str(refused.value)


# Two records that differ in one place, as the digest has to see.
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an empty list and none": ({"prompt_ids": []}, {"prompt_ids": None}),
    "an empty text and none": ({"prompt_text": ""}, {"prompt_text": None}),
    "0 and none": ({"reward": 0.0}, {"reward": None}),
    "where a text ends": ({"token_texts": ["ab", "c"]}, {"token_texts": ["a", "bc"]}),
    "where a name ends": (
        {"train_version": "a", "prompt_text": "b"},
        {"train_version": "ab", "prompt_text": ""},
    ),
    "the column of a text": ({"filtered": "x"}, {"train_version": "x"}),
    "a field of an item": ({"media": [IMAGE]}, {"media": [IMAGE | {"length": 1, "offset": 0}]}),
    "a field that is none": ({"media": [IMAGE]}, {"media": [IMAGE | {"content": None}]}),
    "which side a tensor is of": (
        {"media": [IMAGE | {"tensors": [TENSOR | {"engine": "x", "train": None}]}]},
        {"media": [IMAGE | {"tensors": [TENSOR | {"engine": None, "train": "x"}]}]},
    ),
    "which item has the tensor": (
        {"media": [IMAGE, IMAGE | {"tensors": []}]},
        {"media": [IMAGE | {"tensors": []}, IMAGE]},
    ),
    "no tensors and none": ({"media": [IMAGE | {"tensors": []}]}, {"media": [IMAGE | {"tensors": None}]}),
    "a truth": ({"loss_mask": [True, False]}, {"loss_mask": [False, True]}),
    "a mark of a span": ({"version_spans": [SPAN]}, {"version_spans": [SPAN | {"mixed_state": None}]}),
}


@pytest.mark.parametrize("rows", [1, 300])
def test_the_digest_is_over_the_values_of_the_columns_that_are_given(rows: int) -> None:
    """Worked out by hand: a part that was posted before an upgrade is the same part when it is posted again."""

    def truths(count: int) -> bytes:
        return np.packbits(np.ones(count, np.bool_)).tobytes()

    def numbers(*values: float) -> bytes:
        return truths(rows) + struct.pack("<q", 2) * rows + truths(2 * rows) + struct.pack("<2d", *values) * rows

    names = [f"{number:03}" for number in range(rows)]
    content = f"omni_rl.step/1:{rows};sample:".encode() + truths(rows) + struct.pack("<q", 3) * rows
    content += "".join(names).encode()
    content += b";rollout_logprobs:" + numbers(-1.0, -2.0) + b";train_logprobs:" + numbers(-1.5, -2.0)
    assert StepRecords.of([MINIMAL | {"sample": name} for name in names]).digest == blake3(content).hexdigest()


@pytest.mark.parametrize(("one", "other"), OTHERS.values(), ids=list(OTHERS))
def test_the_digest_tells_apart_what_differs(one: dict[str, Any], other: dict[str, Any]) -> None:
    digests = {StepRecords.of([MINIMAL | row, MINIMAL | {"sample": "b"}]).digest for row in (one, other)}
    assert len(digests) == 2
    assert StepRecords.of([MINIMAL | {"sample": "b"}]).digest not in digests


def test_a_column_of_no_texts_needs_no_buffers_of_texts() -> None:
    records = StepRecords.of([{"sample": "a", "rollout_logprobs": [], "train_logprobs": [], "token_texts": []}])
    none = pa.Array.from_buffers(pa.string(), 0, [None, None, pa.py_buffer(b"")])
    column = pa.ListArray.from_arrays(pa.array([0, 0], pa.int32()), none)
    bare = records.table.set_column(SCHEMA.get_field_index("token_texts"), "token_texts", column)
    assert StepRecords(bare).digest == records.digest


def test_the_digest_of_a_record_alone_is_the_same_wherever_it_stood() -> None:
    texts = {"prompt_text": "what?", "token_texts": ["a", ""], "train_version": "v1"}
    rows = [
        MINIMAL | {"sample": "a", "version_spans": [SPAN], "media": [IMAGE, IMAGE]},
        MINIMAL | texts | {"sample": "b", "media": [IMAGE | {"tensors": []}], "prompt_ids": [5]},
        MINIMAL | {"sample": "c", "prompt_text": "", "loss_mask": [True, False]},
    ]
    whole = StepRecords.of(rows)
    again = StepRecords.from_arrow(StepRecords.stream(rows))
    assert again.digest == whole.digest
    for number, row in enumerate(rows):
        alone = StepRecords.of([row])
        for of in (whole, again, StepRecords.from_payload(whole.packed())):
            assert of.row(number).digest == alone.digest == of.at_place(number).digest
        assert alone.at_place(number).digest == alone.digest, "as older ledgers have it: that sample alone"


def test_the_bytes_of_records_are_those_in_memory() -> None:
    few, many = (StepRecords.of([MINIMAL | {"sample": str(n)} for n in range(count)]) for count in (10, 1000))
    assert 10 * 4 * 8 <= few.nbytes < many.nbytes / 50


def test_columns_say_the_prompts_length_and_which_tokens_are_of_mixed_state() -> None:
    spans = [SPAN | {"end": 1, "mixed_state": mixed} for mixed in (False, True, None)]
    after = SPAN | {"start": 1, "mixed_state": True}
    rows: list[dict[str, Any]] = [
        {"prompt_ids": [1, 2, 3]},
        {"prompt_tokens": 2, "version_spans": [spans[0], after]},
        {"version_spans": [spans[1]]},
        {"prompt_tokens": 0, "version_spans": [spans[2]]},
        {"version_spans": None, "loss_mask": [False, True]},
    ]
    columns = StepRecords.of([MINIMAL | {"sample": str(n)} | row for n, row in enumerate(rows)]).columns
    assert columns.prompt_tokens.tolist() == [3, 2, 0, 0, 0]
    assert columns.mixed_state is not None
    assert np.flatnonzero(columns.mixed_state).tolist() == [3, 4]
    assert columns.loss_mask is not None
    assert np.flatnonzero(~columns.loss_mask).tolist() == [8]
    assert columns.kinds == ["text"] * 5
    plain = StepRecords.of([MINIMAL]).columns
    assert (plain.mixed_state, plain.loss_mask, plain.choices) == (None, None, {})


def test_choices_are_those_of_their_row_by_position_layer_and_expert() -> None:
    experts = np.arange(12)
    row: dict[str, Any] = {"moe_layers": 2, "experts_per_token": 3, "prompt_tokens": 1, "margins": [0.1, 0.2, 0.3, 0.4]}
    rows: list[dict[str, Any]] = [
        MINIMAL,
        MINIMAL | row | {"sample": "b", "rollout_experts": experts, "train_experts": experts[::-1]},
    ]
    rows.append(MINIMAL | row | {"sample": "c", "rollout_experts": experts + 1, "train_experts": experts})
    choices = StepRecords.of(rows).columns.choices
    assert sorted(choices) == [1, 2]
    assert choices[1].rollout.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert choices[1].train[1, 1].tolist() == [2, 1, 0]
    assert choices[2].rollout[0, 0].tolist() == [1, 2, 3]
    assert choices[2].margins.tolist() == np.array([[0.1, 0.2], [0.3, 0.4]], np.float32).tolist()
