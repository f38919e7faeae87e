"""Records that are refused, by which row, which column and which words, in Arrow and in JSON."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from omni_rl.consistency.comparison import compare_step
from omni_rl.errors import RecordError
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import VERSION_KEY, RecordLimits

from .bodies import MINIMAL, WHOLE, document, stream

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sample": None}, r"row 1, column sample: is required"),
    ({"sample": ""}, r"row 1.*column sample: is empty"),
    ({"sample": "first"}, r"row 1 \(sample 'first'\), column sample: is also the name of row 0"),
    ({"sample": "x" * 600}, r"row 1.*column sample: has 600 bytes, over 512"),
    ({"kind": "smell"}, r"row 1 \(sample 'a'\), column kind: is 'smell'"),
    ({"train_logprobs": None}, r"row 1.*column train_logprobs: is required"),
    ({"train_logprobs": [-1.0]}, r"row 1.*column train_logprobs: has 1 value, rollout_logprobs has 2"),
    ({"train_logprobs": ["x", -1.0]}, r"row 1, column train_logprobs"),
    ({"ids": [1, 2, 3]}, r"row 1.*column ids: has 3 values"),
    ({"ids": [1, -2]}, r"row 1.*column ids: value 1 is negative"),
    ({"ids": [1, None]}, r"row 1.*column ids: value 1 is null"),
    ({"ids": [1, 2**40]}, r"row 1, column ids"),
    ({"ids": [1, 0.5]}, r"row 1, column ids"),
    ({"prompt_tokens": -1}, r"row 1.*column prompt_tokens: is negative"),
    ({"prompt_tokens": 2, "prompt_ids": [1]}, r"row 1.*column prompt_ids: has 1 value, prompt_tokens says 2"),
    ({"prompt_tokens": 2**30}, r"row 1.*column prompt_tokens: and the answer are 1073741826 tokens"),
    ({"loss_mask": [True]}, r"row 1.*column loss_mask: has 1 value"),
    ({"rollout_entropy": [0.5]}, r"row 1.*column rollout_entropy: has 1 value, rollout_logprobs has 2"),
    ({"train_entropy": [0.5, -1.0]}, r"row 1.*column train_entropy: value 1 is no entropy"),
    ({"train_entropy": [math.nan, 0.5]}, r"row 1.*column train_entropy: value 0 is no entropy"),
    ({"train_entropy": [0.5, math.inf]}, r"row 1.*column train_entropy: value 1 is no entropy"),
    ({"rollout_top_ids": [1, 2]}, r"rollout_top_ids and rollout_top_logprobs go together"),
    ({"rollout_top_ids": [1, 2, 3], "rollout_top_logprobs": [-1.0] * 3}, r"column rollout_top_ids: has 3 values, .* 2"),
    ({"rollout_top_ids": [1, 2], "rollout_top_logprobs": [-1.0] * 4}, r"rollout_top_logprobs: has 4 values, .* 2"),
    ({"rollout_top_ids": [], "rollout_top_logprobs": []}, r"column rollout_top_ids: has 0 ids a token"),
    ({"rollout_top_ids": [1] * 66, "rollout_top_logprobs": [-1.0] * 66}, r"has 33 ids a token; from 1 to 32"),
    ({"rollout_top_ids": [1, -2], "rollout_top_logprobs": [-1.0] * 2}, r"column rollout_top_ids: value 1 is negative"),
    (
        {"rollout_top_ids": [1, 2], "rollout_top_logprobs": [math.nan, -1.0]},
        r"column rollout_top_logprobs: value 0 is no logprob",
    ),
    ({"rollout_top_ids": [1, 2], "rollout_top_logprobs": [-1.0, 0.5]}, r"rollout_top_logprobs: value 1 is no logprob"),
    ({"temperature": -1.0}, r"row 1.*column temperature: is -1.0"),
    ({"temperature": math.nan}, r"row 1.*column temperature: is nan"),
    ({"version_spans": [{"version": "v", "start": 0, "end": 3}]}, r"row 1.*version_spans: value 0 .*ends after"),
    (
        {"version_spans": [{"version": "v", "start": 0, "end": 2}, {"version": "w", "start": 1, "end": 2}]},
        r"row 1.*version_spans: value 1",
    ),
    ({"version_spans": [{"version": None, "start": 0, "end": 2}]}, r"version_spans: version is null"),
    ({"media": [{"modality": "smell", "offset": 0, "length": 0}]}, r"row 1.*media: value 0 has a modality"),
    ({"prompt_tokens": 2, "media": [{"modality": "image", "offset": 1, "length": 2}]}, r"row 1.*media: value 0 lies"),
    ({"media": [{"modality": "image", "offset": 0, "length": 0, "content": "../x"}]}, r"media: value 0 has a content"),
    ({"media": [{"modality": "image", "offset": 0, "length": 0, "tensors": [{"name": None}]}]}, r"name is null"),
    ({"token_texts": ["a"]}, r"row 1.*column token_texts: has 1 value"),
    ({"moe_layers": 2}, r"row 1.*rollout_experts: moe_layers, .* go together"),
    ({"no_such": 1}, r"row 1: unknown columns no_such"),
    ({"sample": "a\0b"}, r"row 1.*column sample: has a NUL"),
    ({"train_version": "\0"}, r"row 1.*column train_version: has a NUL"),
    ({"version_spans": [{"version": "\0", "start": 0, "end": 2}]}, r"row 1.*version_spans: value 0 has a NUL"),
    (
        {"media": [{"modality": "image", "offset": 0, "length": 0, "tensors": [{"name": "p", "engine": "\0"}]}]},
        r"row 1.*media: has a tensor's engine with a NUL",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[", ".join(change) for change, _ in REFUSED])
def test_what_is_wrong_is_refused_by_row_and_column(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        StepRecords.from_json(document(dict(MINIMAL, sample="first"), MINIMAL | change))


@pytest.mark.parametrize("value", [[""], [[]]])
@pytest.mark.parametrize("column", ["version_spans", "media"])
def test_a_row_that_makes_another_unreadable_is_refused(column: str, value: Any) -> None:
    with pytest.raises(RecordError, match=column):
        StepRecords.from_json(document(WHOLE, MINIMAL | {column: value}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rollout_experts", [0] * 7, r"rollout_experts: has 7 values, .* is 8"),
        ("margins", [0.0] * 7, r"margins: has 7 values, .* is 8"),
        ("experts_per_token", 0, r"experts_per_token: must be 1 to 4096"),
        ("moe_layers", 1 << 20, r"moe_layers: must be 1 to 4096"),
    ],
)
def test_router_choices_must_fit(name: str, value: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        StepRecords.of([WHOLE | {name: value}])


def test_all_answers_of_a_part_have_as_many_likeliest_ids() -> None:
    two = MINIMAL | {"rollout_top_ids": [1, 2, 3, 4], "rollout_top_logprobs": [-1.0] * 4}
    one = MINIMAL | {"sample": "b", "rollout_top_ids": [1, 2], "rollout_top_logprobs": [-1.0] * 2}
    with pytest.raises(RecordError, match=r"row 1.*rollout_top_ids: has 2 values, .* are 4"):
        StepRecords.of([two, one])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (RecordLimits(records=1), "more than 1 records"),
        (RecordLimits(tokens=3), "4 sampled tokens in one part, over 3"),
        (RecordLimits(tokens_per_record=1), "has 2 tokens, over 1"),
    ],
)
def test_parts_are_bounded(limits: RecordLimits, message: str) -> None:
    records = [MINIMAL, dict(MINIMAL, sample="b")]
    with pytest.raises(RecordError, match=message):
        StepRecords.from_json(document(*records), limits)
    with pytest.raises(RecordError, match=message):
        StepRecords.from_arrow(StepRecords.of(records).to_arrow(), limits)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"schema": "omni_rl.step/2", "records": []}', b"{", b'{"records": []}', b"\xff"],
)
def test_other_json_is_refused(body: bytes) -> None:
    with pytest.raises(RecordError):
        StepRecords.from_json(body)


def spoilt(change: Callable[[pa.Table], pa.Table], **options: Any) -> bytes:
    table = StepRecords.of([MINIMAL]).table.select(["sample", "rollout_logprobs", "train_logprobs"])
    return stream(change(table), **options)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not an Arrow IPC stream"),
        (b"GET / HTTP/1.1", "not an Arrow IPC stream"),
        (spoilt(lambda t: t.replace_schema_metadata(None)), "must carry omni_rl.schema = omni_rl.step/1; it has none"),
        (spoilt(lambda t: t.replace_schema_metadata({VERSION_KEY: b"omni_rl.step/9"})), "it says 'omni_rl.step/9'"),
        (spoilt(lambda t: t.append_column("extra", pa.array([1]))), "unknown columns extra"),
        (spoilt(lambda t: t.drop_columns("train_logprobs")), "columns train_logprobs are missing"),
        (spoilt(lambda t: t.set_column(0, "sample", pa.array([1]))), "column sample is int64; expected string"),
        (spoilt(lambda t: t, compression="zstd"), "message 1 of the stream is a record batch with compressed buffers"),
    ],
)
def test_other_streams_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        StepRecords.from_arrow(body)


def damaged(body: bytes, random: Random) -> bytes:
    """`body` with a few bytes, words, insertions or cuts: words that are lengths and offsets are hit often enough."""
    found = bytearray(body)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(found))
        match random.choice(("byte", "byte", "word", "word", "cut", "insert")):
            case "byte":
                found[at] = random.choice((0, 1, 127, 128, 255))
            case "word":
                at &= ~3
                word = random.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, random.randrange(64), random.randrange(2**32)))
                found[at : at + 4] = word.to_bytes(4, "little")
            case "cut":
                del found[at : at + random.choice((1, 4, 8, 64))]
            case "insert":
                found[at:at] = random.randbytes(random.choice((1, 4, 8)))
    return bytes(found)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_stream_is_refused_or_read_but_never_worse(seed: int) -> None:
    body = StepRecords.of([MINIMAL, WHOLE]).to_arrow()
    random = Random(seed)
    read = 0
    for _ in range(2000):
        try:
            records = StepRecords.from_arrow(damaged(body, random))
        except RecordError:
            continue
        read += 1
        compare_step(records.columns)
        assert len(records.digest) == 64
        records.to_json()
    assert 0 < read < 2000
