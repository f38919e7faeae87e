"""Records at each bound of what is taken, and one past it: the bound itself is taken, what is past it is refused."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from omni_rl.errors import RecordError
from omni_rl.kinds import KINDS
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import COLUMNS, SCHEMA, VERSION, RecordLimits
from omni_rl.ledger.wire import write_arrow

from .bodies import MINIMAL

IMAGE = {"modality": "image", "offset": 0, "length": 0}
SPAN = {"version": "v", "start": 0, "end": 2}


def top(*logprobs: float, k: int = 1) -> dict[str, Any]:
    return {"rollout_top_ids": [0] * 2 * k, "rollout_top_logprobs": [*logprobs, *[-1.0] * (2 * k - len(logprobs))]}


def choices(layers: int = 1, chosen: int = 1, prompt: int = 1, **changes: Any) -> dict[str, Any]:
    """Router choices of a prompt and an answer of two tokens."""
    experts = [0] * ((prompt + 1) * layers * chosen)
    margins = [0.5] * ((prompt + 1) * layers)
    of = {"rollout_experts": experts, "train_experts": experts, "margins": margins, "prompt_tokens": prompt}
    return {"moe_layers": layers, "experts_per_token": chosen, **of, **changes}


NAMED = ("train_version", "rollout_prompt_digest", "train_prompt_digest", "filtered", "rollout_dtype", "train_dtype")
# What is taken, what is refused, and what is said then.
BOUNDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bytes of a name": ({"sample": "é" * 256}, {"sample": "é" * 256 + "x"}, "column sample: has 513 bytes, over 512"),
    **{
        f"bytes of {name}": ({name: "x" * 512}, {name: "x" * 513}, f"column {name}: has 513 bytes, over 512")
        for name in NAMED
    },
    "bytes of a span's version": (
        {"version_spans": [SPAN | {"version": "x" * 512}]},
        {"version_spans": [SPAN | {"version": "x" * 513}]},
        "column version_spans: value 0 is longer than 512 bytes",
    ),
    **{
        f"bytes of a tensor's {name}": (
            {"media": [IMAGE | {"tensors": [{"name": "p", name: "x" * 512}]}]},
            {"media": [IMAGE | {"tensors": [{"name": "p"}, {"name": "p", name: "x" * 513}]}]},
            f"column media: has a tensor's {name} over 512 bytes",
        )
        for name in ("name", "rendered", "engine", "train")
    },
    "a position of a prompt": ({"prompt_tokens": 0}, {"prompt_tokens": -1}, "column prompt_tokens: is negative"),
    "an id": ({"ids": [0, 1]}, {"ids": [1, -1]}, "column ids: value 1 is negative"),
    "an id of the prompt": ({"prompt_ids": [0]}, {"prompt_ids": [-1]}, "column prompt_ids: value 0 is negative"),
    "a likely id": (top(), top() | {"rollout_top_ids": [0, -1]}, "column rollout_top_ids: value 1 is negative"),
    "ids a token": (top(k=32), top(k=33), "has 33 ids a token; from 1 to 32 of them are kept"),
    "a logprob by rounding": (top(0.0009), top(0.0011), "rollout_top_logprobs: value 0 is no logprob"),
    "an entropy by rounding": (
        {"train_entropy": [0.0, -0.0009]},
        {"train_entropy": [0.0, -0.0011]},
        "column train_entropy: value 1 is no entropy",
    ),
    "the engine's entropy": (
        {"rollout_entropy": [-0.0009, 99.0]},
        {"rollout_entropy": [-0.0011, 99.0]},
        "column rollout_entropy: value 0 is no entropy",
    ),
    "a temperature": ({"temperature": 0.0}, {"temperature": -1e-9}, "column temperature: is -1e-09; it must be finite"),
    "a finite temperature": ({"temperature": 1e300}, {"temperature": np.inf}, "column temperature: is inf"),
    "a span's beginning": (
        {"version_spans": [SPAN]},
        {"version_spans": [SPAN | {"start": -1}]},
        "version_spans: value 0 is not in order",
    ),
    "a span's end": ({"version_spans": [SPAN]}, {"version_spans": [SPAN | {"end": 3}]}, "ends after the answer"),
    "a span's length": (
        {"version_spans": [SPAN | {"start": 1}]},
        {"version_spans": [SPAN | {"start": 2}]},
        "version_spans: value 0 is not in order, is empty",
    ),
    "spans one after another": (
        {"version_spans": [SPAN | {"end": 1}, SPAN | {"start": 1}]},
        {"version_spans": [SPAN | {"end": 1}, SPAN | {"start": 0}]},
        "version_spans: value 1 is not in order",
    ),
    "an item's end": (
        {"prompt_tokens": 3, "media": [IMAGE | {"offset": 1, "length": 2}]},
        {"prompt_tokens": 3, "media": [IMAGE, IMAGE | {"offset": 1, "length": 3}]},
        "column media: value 1 lies outside its prompt",
    ),
    "an item's offset": (
        {"media": [IMAGE | {"offset": 9, "length": 9}]},  # the prompt is not known
        {"media": [IMAGE | {"offset": -1}]},
        "column media: value 0 lies outside",
    ),
    "an item's length": (
        {"prompt_tokens": 1, "media": [IMAGE | {"length": 1}]},
        {"prompt_tokens": 1, "media": [IMAGE | {"offset": 1, "length": -1}]},
        "column media: value 0 lies outside",
    ),
    "items": ({"media": [IMAGE] * 256}, {"media": [IMAGE] * 257}, "column media: has 257 items, over 256"),
    "tensors": (
        {"media": [IMAGE | {"tensors": [{"name": "p"}] * 256}]},
        {"media": [IMAGE, IMAGE | {"tensors": [{"name": "p"}] * 257}]},
        "column media: value 1 has more than 256 tensors",
    ),
    "content": (
        {"media": [IMAGE | {"content": "0f" * 32}]},
        {"media": [IMAGE | {"content": "0f" * 32 + "0"}]},
        "media: value 0 has a content that is no blake3",
    ),
    "fewest layers": (choices(), choices(moe_layers=0), "column moe_layers: must be 1 to 4096"),
    "most layers": (choices(layers=4096), choices(layers=4097), "column moe_layers: must be 1 to 4096"),
    "fewest experts": (choices(), choices(experts_per_token=0), "column experts_per_token: must be 1 to 4096"),
    "most experts": (choices(chosen=4096), choices(chosen=4097), "column experts_per_token: must be 1 to 4096"),
    "a prompt beside choices": (
        choices(),
        choices(prompt=0),
        "column prompt_tokens: must be known beside router choices",
    ),
    "what the logprobs are of": (
        {"logprobs_of": "raw"},
        {"logprobs_of": "cooked"},
        "column logprobs_of: is 'cooked'; use processed, raw, unknown",
    ),
}


@pytest.mark.parametrize(("taken", "refused", "message"), BOUNDS.values(), ids=list(BOUNDS))
def test_a_bound_is_taken_and_what_is_past_it_refused(
    taken: dict[str, Any], refused: dict[str, Any], message: str
) -> None:
    first = MINIMAL | {"sample": "first"}
    found = StepRecords.of([first, MINIMAL | taken, MINIMAL | {"sample": "last"}])
    assert found.samples == ["first", taken.get("sample", "a"), "last"]
    with pytest.raises(RecordError, match=rf"^row 1.*{message}"):
        StepRecords.of([first, MINIMAL | refused, MINIMAL | {"sample": "last"}])


WHOLE = MINIMAL | choices(layers=2, chosen=3, prompt=2) | {"prompt_text": "éé", "token_texts": ["a", "éé"]}
# The least limits with which WHOLE beside MINIMAL is taken, and what one less refuses.
LIMITS = {
    "records": (2, "more than 1 records in one part; send them as several parts"),
    "tokens": (4, "4 sampled tokens in one part, over 3; send several parts"),
    "tokens_per_record": (4, "row 1 .*column prompt_tokens: and the answer are 4 tokens, over 3"),
    "values_per_record": (18, "row 1 .*column rollout_experts: has 18 values, over 17"),
    "text": (4, "row 1 .*column prompt_text: has 4 bytes, over 3"),
    "name": (5, "row 1 .*column sample: has 5 bytes, over 4"),
}


@pytest.mark.parametrize(("limit", "least", "message"), [(name, *of) for name, of in LIMITS.items()], ids=list(LIMITS))
def test_a_part_may_hold_as_much_as_its_limits_say(limit: str, least: int, message: str) -> None:
    rows = [MINIMAL, WHOLE | {"sample": "whole"}]
    digest = StepRecords.of(rows).digest
    settings: list[dict[str, Any]] = [{limit: least}, {limit: least - 1}]
    enough, small = (RecordLimits(**setting) for setting in settings)
    stream, document = StepRecords.stream(rows), json.dumps({"schema": VERSION, "records": rows})
    for found in (StepRecords.of(rows, enough), StepRecords.from_arrow(stream, enough)):
        assert found.digest == digest
    assert StepRecords.from_json(document, enough).digest == digest
    reads: list[Callable[[], StepRecords]] = [
        lambda: StepRecords.of(rows, small),
        lambda: StepRecords.from_arrow(stream, small),
        lambda: StepRecords.from_json(document, small),
    ]
    for read in reads:
        with pytest.raises(RecordError, match=message):
            read()


def test_an_answer_alone_may_have_as_many_tokens_as_one_may() -> None:
    StepRecords.of([MINIMAL], RecordLimits(tokens_per_record=2))
    with pytest.raises(RecordError, match=r"row 0 .*column rollout_logprobs: has 2 tokens, over 1"):
        StepRecords.of([MINIMAL], RecordLimits(tokens_per_record=1))


def test_the_texts_of_tokens_are_bounded_each() -> None:
    row = MINIMAL | {"token_texts": ["abc", "abcd"]}
    StepRecords.of([row], RecordLimits(text=4))
    with pytest.raises(RecordError, match=r"row 0 .*column token_texts: value 1 is longer than 3 bytes"):
        StepRecords.of([row], RecordLimits(text=3))


def test_kinds_are_those_that_a_run_names() -> None:
    limits = RecordLimits(kinds=("text", "chart"))
    rows = [MINIMAL, MINIMAL | {"sample": "b", "kind": "chart"}]
    assert StepRecords.of(rows, limits).kinds == ["text", "chart"]
    with pytest.raises(RecordError, match=r"row 1 \(sample 'b'\), column kind: is 'chart'; known are text, image"):
        StepRecords.of(rows)
    with pytest.raises(RecordError, match=r"column kind: is 'image'; known are text, chart"):
        StepRecords.of([MINIMAL | {"kind": "image"}], limits)


PARTLY = [
    (choices(margins=None), "rollout_experts: moe_layers, .*margins go together or not at all"),
    ({"moe_layers": 1, "experts_per_token": 1}, "rollout_experts: moe_layers, .* go together"),
    ({"rollout_top_logprobs": [-1.0, -1.0]}, "rollout_top_ids and rollout_top_logprobs go together or not at all"),
    (choices(margins=[0.5]), r"column margins: has 1 value, \(prompt \+ answer - 1\) \* moe_layers is 2"),
    (choices(chosen=2, train_experts=[0] * 3), r"column train_experts: has 3 values, .* \* experts_per_token is 4"),
]


@pytest.mark.parametrize(("columns", "message"), PARTLY)
def test_columns_that_go_together_are_all_there(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=rf"^row 1.*{message}"):
        StepRecords.of([MINIMAL, MINIMAL | {"sample": "b"} | columns])


def test_an_answer_without_tokens_has_no_likely_ids_and_another_has() -> None:
    empty = {"sample": "e", "rollout_logprobs": [], "train_logprobs": []}
    none = empty | {"rollout_top_ids": [], "rollout_top_logprobs": []}
    rows = [none, MINIMAL | top(k=3), MINIMAL | {"sample": "without"}]
    assert StepRecords.of(rows).table["rollout_top_ids"].to_pylist() == [[], [0] * 6, None]
    with pytest.raises(RecordError, match=r"row 0 .*rollout_top_ids: has 1 value, .* are 0"):
        StepRecords.of([none | {"rollout_top_ids": [1], "rollout_top_logprobs": [-1.0]}, *rows[1:]])


@pytest.mark.parametrize("name", ["version_spans", "media"])
def test_what_is_null_in_an_item_is_named(name: str) -> None:
    items: dict[str, Any] = {"version_spans": SPAN, "media": IMAGE}
    for field in items[name]:
        with pytest.raises(RecordError, match=rf"column {name}: {field} is null in one of its items"):
            StepRecords.of([MINIMAL | {name: [items[name] | {field: None}]}])


def test_a_part_has_16384_records_and_its_texts_a_mebibyte() -> None:
    names = [str(number) for number in range(16_385)]

    def stream(count: int) -> bytes:
        logprobs = pa.array([[-1.0]] * count)
        columns = {"sample": pa.array(names[:count]), "rollout_logprobs": logprobs, "train_logprobs": logprobs}
        return write_arrow(pa.table(columns).replace_schema_metadata(SCHEMA.metadata))

    assert len(StepRecords.from_arrow(stream(16_384))) == 16_384
    with pytest.raises(RecordError, match="more than 16384 records in one part"):
        StepRecords.from_arrow(stream(16_385))
    text = "x" * 2**20
    StepRecords.of([MINIMAL | {"prompt_text": text, "token_texts": [text, ""]}])
    for texts in ({"prompt_text": text + "x"}, {"token_texts": ["", text + "x"]}):
        with pytest.raises(RecordError, match=r"1048577 bytes, over 1048576|value 1 is longer than 1048576 bytes"):
            StepRecords.of([MINIMAL | texts])


def test_an_answer_and_its_prompt_have_a_mebitoken() -> None:
    answer = np.full(2**20 - 1, -1.0)
    row = {"sample": "a", "rollout_logprobs": answer, "train_logprobs": answer}
    assert StepRecords.of([row | {"prompt_tokens": 1}]).tokens == 2**20 - 1
    with pytest.raises(RecordError, match="and the answer are 1048577 tokens, over 1048576"):
        StepRecords.of([row | {"prompt_tokens": 2}])
    with pytest.raises(RecordError, match=r"rollout_logprobs: has 1048577 tokens, over 1048576"):
        StepRecords.of([row | {"rollout_logprobs": np.full(2**20 + 1, -1.0)}])


def test_an_answer_has_so_many_router_choices_at_most() -> None:
    """The bound is 2 ** 28: of 4096 layers and as many experts a token, the choices of 16 positions."""
    beside = choices() | {"moe_layers": 4096, "experts_per_token": 4096}
    with pytest.raises(RecordError, match=r"has 2 values, .* is 268435456"):
        StepRecords.of([MINIMAL | beside | {"prompt_tokens": 15}])
    with pytest.raises(RecordError, match="column rollout_experts: has 285212672 values, over 268435456"):
        StepRecords.of([MINIMAL | beside | {"prompt_tokens": 16}])


def test_the_schema_says_what_is_required_and_which_kinds_there_are() -> None:
    required = ["sample", "rollout_logprobs", "train_logprobs"]
    assert [field.name for field in SCHEMA if not field.nullable] == required
    assert [column.name for column in COLUMNS if column.required] == required
    (kind,) = (column for column in COLUMNS if column.name == "kind")
    assert kind.meaning.partition(":")[0].replace(" or ", ", ").split(", ") == list(KINDS)
