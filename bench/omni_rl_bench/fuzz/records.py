"""Makes a rank's records of a step, as JSON and as Arrow streams: valid, oddly laid out, of odd types, and with odd
bytes."""

import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from omni_rl.kinds import KINDS
from omni_rl.ledger.schema import COLUMNS, SCHEMA, VERSION, VERSION_KEY
from omni_rl.ledger.wire import pack
from omni_rl_bench.fuzz.bytestrings import mutated
from omni_rl_bench.fuzz.documents import ODD
from omni_rl_bench.fuzz.media import digests

METADATA = {VERSION_KEY: VERSION.encode()}
Row = dict[str, Any]


def rows(rng: random.Random) -> list[Row]:
    """Return one to six answers with columns that fit each other."""
    return [_row(f"p{number}/0", rng) for number in range(rng.choice((1, 1, 2, 6)))]


def document(made: list[Row]) -> dict[str, Any]:
    return {"schema": VERSION, "records": made}


def stream(made: list[Row], rng: random.Random) -> bytes:
    """Return an Arrow stream, laid out in one of several ways that mean the same."""
    table = _table(made)
    match rng.randrange(6):
        case 0:
            return _written(pa.concat_tables([table, table]).slice(len(table)))
        case 1:  # offsets that begin elsewhere than at 0
            return _written(pa.concat_tables([table, table]).combine_chunks().slice(1, len(table)))
        case 2:
            return _written(_wide(table))
        case _:
            return _written(table)


def odd_stream(made: list[Row], rng: random.Random) -> bytes:
    """Return an Arrow stream that is not as it should be."""
    table = _table(made)
    match rng.randrange(10):
        case 0:
            return _written(_with_odd_column(table, rng))
        case 1:
            return _written(_with_odd_value(made, rng))
        case 2:
            return _written(table, pa.ipc.IpcWriteOptions(compression=rng.choice(("zstd", "lz4"))))
        case 3:
            return rng.choice((pack(table), _written(table) * 2, _written(table.slice(0, 0)), _written(table)[:-8]))
        case 4:
            return _written(table.replace_schema_metadata(rng.choice((None, {VERSION_KEY: b"\xff"}, {b"a": b"b"}))))
        case 5:
            names = [name for name in table.column_names if rng.random() < 0.7]
            return _written(table.select([*names, *names[:1]]))
        case 6:  # the schema's message
            return mutated(_written(table), rng, (0, 700))
        case 7 | 8:  # the batch's message, which holds lengths and offsets of buffers
            whole = _written(table)
            at = len(_written(table.slice(0, 0))) - 8
            return mutated(whole, rng, (at, min(len(whole), at + 1_500)))
        case _:
            return mutated(_written(table), rng)


def _row(sample: str, rng: random.Random) -> Row:
    prompt, sampled = rng.randrange(1, 6), rng.choice((0, 1, 3, 16))
    train = [-rng.expovariate(1) for _ in range(sampled)]
    apart = rng.choice((0.0, 1e-4, 0.3, 5.0))
    row: Row = {
        "sample": sample,
        "rollout_logprobs": [value - apart * rng.random() for value in train],
        "train_logprobs": train,
    }
    positions = prompt + sampled - 1
    beside: dict[str, Callable[[], Row]] = {
        "kind": lambda: {"kind": rng.choice(KINDS)},
        "ids": lambda: {"ids": list(range(sampled)), "prompt_ids": list(range(prompt))},
        "mask": lambda: {"loss_mask": [rng.random() < 0.8 for _ in range(sampled)]},
        "entropy": lambda: {"rollout_entropy": [0.5] * sampled, "train_entropy": [0.5] * sampled},
        "top": lambda: {
            "rollout_top_ids": list(range(2 * sampled)),
            "rollout_top_logprobs": [-0.5, -float("inf")] * sampled,
        },
        "temperature": lambda: {"temperature": rng.choice((0.0, 0.7, 1.0)), "reward": rng.choice((0.0, 1.0, 1e300))},
        "spans": lambda: {"version_spans": _spans(sampled, rng), "train_version": "v2"},
        "media": lambda: {"prompt_tokens": prompt, "media": [_media(rng)]},
        "digests": lambda: {"rollout_prompt_digest": "a", "train_prompt_digest": rng.choice("ab")},
        "words": lambda: {"logprobs_of": rng.choice(("processed", "raw", "unknown")), "filtered": "reward"},
        "dtypes": lambda: {"rollout_dtype": "float8", "train_dtype": "bfloat16"},
        "texts": lambda: {"prompt_text": "What is 2+2? 🦜", "token_texts": ["é"] * sampled},
        "experts": lambda: {
            "prompt_tokens": prompt,
            "moe_layers": 2,
            "experts_per_token": 2,
            "rollout_experts": [rng.randrange(-1, 4) for _ in range(positions * 4)],
            "train_experts": [rng.randrange(4) for _ in range(positions * 4)],
            "margins": [rng.random() for _ in range(positions * 2)],
        },
    }
    for make in beside.values():
        if rng.random() < 0.25:
            row |= make()
    return row


def _spans(sampled: int, rng: random.Random) -> list[Row]:
    if not sampled:
        return []
    middle = rng.randrange(sampled)
    cuts = [(0, middle), (middle, sampled)] if middle else [(0, sampled)]
    return [
        {"version": f"v{n}", "start": a, "end": b, "mixed_state": rng.random() < 0.3} for n, (a, b) in enumerate(cuts)
    ]


def _media(rng: random.Random) -> Row:
    tensor = {"name": "pixels", "rendered": "a", "engine": "a", "train": rng.choice("ab")}
    return {
        "modality": "image",
        "offset": 0,
        "length": 1,
        "content": rng.choice(digests()),
        "tensors": [tensor] * rng.randrange(3),
    }


def _table(made: list[Row]) -> pa.Table:
    used = [field for field in SCHEMA if any(row.get(field.name) is not None for row in made)]
    schema = pa.schema([field.with_nullable(True) for field in used], METADATA)
    return pa.Table.from_pylist(made, schema)


def _wide(table: pa.Table) -> pa.Table:
    """Return the table with offsets of 64 bits in its lists and strings."""

    def wide(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_list(kind):
            return pa.large_list(kind.value_type)
        return pa.large_string() if pa.types.is_string(kind) else kind

    return table.cast(pa.schema([field.with_type(wide(field.type)) for field in table.schema], METADATA))


def _with_odd_value(made: list[Row], rng: random.Random) -> pa.Table:
    """Return a table with a value that its column's type can hold, and the published schema does not allow."""
    row = dict(rng.choice(made))
    column = rng.choice(COLUMNS)
    kind = column.type
    values: tuple[Any, ...]
    if pa.types.is_list(kind):
        one = kind.value_type
        inner = _odd_of(one)
        values = (
            None,
            [],
            [None],
            [rng.choice(inner)],
            [rng.choice(inner)] * 300,
            list(inner),
            [rng.choice(inner), None],
        )
    else:
        values = _odd_of(kind)
    row[column.name] = rng.choice(values)
    return _table([*made, row] if rng.random() < 0.3 else [row, *made[1:]])


def _odd_of(kind: pa.DataType) -> tuple[Any, ...]:
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return (
            None,
            {},
            dict.fromkeys(names),
            {field.name: _odd_of(field.type)[0] for field in kind},
            {field.name: _odd_of(field.type)[-1] for field in kind},
        )
    if pa.types.is_list(kind):
        return ([], None, [None], [_odd_of(kind.value_type)[-1]])
    if pa.types.is_string(kind):
        return ("", "\0", "a\0b", "x" * 600, "é" * 600, "0" * 64, "\u202e", None, "raw")
    if pa.types.is_boolean(kind):
        return (True, False, None)
    if pa.types.is_integer(kind):
        most = 2 ** (kind.bit_width - 1) - 1
        return (0, -1, 1, 4096, most, -most - 1, None)
    return (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30, -1e30, 5.0, None)


def _with_odd_column(table: pa.Table, rng: random.Random) -> pa.Table:
    """Return a table with a column of another type, or with an unknown one."""
    size = len(table)
    texts, numbers = pa.array(["a"] * size), pa.array([1] * size)
    kinds: tuple[Callable[[], pa.Array], ...] = (
        lambda: pa.nulls(size),
        lambda: texts.dictionary_encode(),
        lambda: pa.array([b"\xff\xfe"] * size, pa.binary()),
        lambda: pa.array([""] * size),
        lambda: pa.array([[""]] * size),
        lambda: pa.array([[[1]]] * size),
        lambda: pa.array([2**63] * size, pa.uint64()),
        lambda: pa.array([1.5] * size, pa.float16()),
        lambda: pa.array([{"version": ""}] * size),
        lambda: pa.array([[("a", 1)]] * size, pa.map_(pa.string(), pa.int64())),
        lambda: pa.FixedSizeListArray.from_arrays(pa.array([1.0] * (2 * size)), 2),
        lambda: numbers.cast(pa.timestamp("s")),
        lambda: pa.array([1] * size, pa.decimal128(9, 2)),
        lambda: pa.array([["a"]] * size, pa.large_list(pa.large_string())),
        lambda: pa.RunEndEncodedArray.from_arrays(pa.array([max(size, 1)], pa.int32()), pa.array(["a"])),
        lambda: pa.array(["a"] * size, pa.string_view()),
    )
    array = rng.choice(kinds)()
    name = rng.choice((*(column.name for column in COLUMNS), "", "unknown", "é\0"))
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, array)
    return table.append_column(name, array)


def _written(table: pa.Table, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    result: bytes = sink.getvalue().to_pybytes()
    return result


def odd_rows(made: list[Row], rng: random.Random) -> list[Row]:
    """Return rows that JSON allows and the schema does not: a text for spans, a list for a name."""
    column = rng.choice(COLUMNS)
    value: Any = rng.choice(
        (rng.choice(ODD), [rng.choice(ODD)], [""], [{}], [[rng.choice(ODD)]], [{"version": rng.choice(ODD)}])
    )
    at = rng.randrange(len(made))
    return [*made[:at], {**made[at], column.name: value}, *made[at + 1 :]]
