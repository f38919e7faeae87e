"""Makes JSON that is not what a route asks for: values of other kinds, numbers that no column holds, invalid texts."""

import json
import random
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400),
    *(0.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "a" * 65,
        "a" * 1025,
        "x" * 20_000,
        "\0",
        "a\0b",
        "\ud800",
        "\udfff\ud800",
        "é",
        "e\u0301",
        "🦜",
        "\u202e",
    ),
    *("../../etc/passwd", "%00", "'; DROP TABLE runs; --", "{{7*7}}", "<script>", "NaN", "1e999", "null", "\r\nX: y"),
    *([], {}, [[]], [None], [""], [0], [{}], {"": ""}, {"a": None}, ["a", 1, None, {}], [1.5, 2**70], {"run": "run-0"}),
)
_TEXTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    lambda text, rng: text[: rng.randrange(len(text) + 1)],
    lambda text, rng: text + rng.choice((b"}", b",", b"\0", b"\n\n{}", text)),
    lambda text, rng: b"[" * rng.choice((100, 5_000, 100_000)) + text,
    lambda text, rng: b'{"a":' * rng.choice((100, 5_000, 50_000)) + text + b"}" * 100,
    lambda text, rng: text.replace(b":", b":" + rng.choice((b"-", b"0", b"1e", b"'", b"\x80")), 1),
    lambda text, rng: text.replace(b'"', rng.choice((b"'", b"", b'\\"', b'"\\ud800')), rng.randrange(1, 4)),
    lambda text, rng: rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0")) + text,
    lambda text, rng: text.decode(errors="replace").encode(rng.choice(("utf-16", "utf-32", "utf-16-be"))),
    lambda text, rng: text.replace(b"{", b"{" + text.strip(b"{}") + b",", 1),  # every key twice
    lambda text, rng: text.replace(b"1", b"1" + b"0" * rng.choice((30, 400, 5_000)), 1),
    lambda text, rng: text.replace(b"a", rng.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\\u0000")), 1),
    lambda text, rng: rng.choice((b"", b"null", b"[]", b"0", b'""', b"true", b"NaN", b"-", b"{", b"\\")),
)


_WIDE: tuple[Any, ...] = (
    {f"k{n}": 0 for n in range(60_000)},
    {f"k{n}": {"a": 0} for n in range(4_000)},
    {f"k {n}!": {} for n in range(4_000)},
    [0] * 300_000,
    ["a"] * 100_000,
    [{}] * 4_000,
    "x" * 900_000,
    {"k" * 500_000: 0},
)
"""Values of up to a megabyte, with more than one wrong value in each."""


def written(value: Any) -> bytes:
    """Return the value as JSON, NaN and lone surrogates included."""
    return json.dumps(value).encode()


def mutated_value(value: Any, rng: random.Random) -> Any:
    """Return the value with one to three of its nodes changed, or with one that is very large."""
    if rng.random() < 0.02 and isinstance(value, dict) and value:
        return {**value, rng.choice((*sorted(value), "x")): rng.choice(_WIDE)}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _changed(value, rng)
    return value


def mutated_text(text: bytes, rng: random.Random) -> bytes:
    """Return the bytes of a document, in most cases no longer a valid one."""
    return rng.choice(_TEXTS)(text, rng)


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        match rng.randrange(8):
            case 0:
                return {name: one for name, one in value.items() if name != key}
            case 1:
                return {**value, rng.choice(("", "x", "a\0", "é" * 90, "\ud800", "schema", key + " ")): rng.choice(ODD)}
            case 2:
                return {**value, key: rng.choice(ODD)}
            case _:
                return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[:at] + [value[at]] * rng.choice((2, 70, 300)) + value[at:]
            case 2:
                return [*value, rng.choice(ODD)]
            case _:
                return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    if rng.random() < 0.1:
        for _ in range(rng.choice((1, 3, 300))):
            value = rng.choice(([value], {"a": value}))
        return value
    return rng.choice(ODD)
