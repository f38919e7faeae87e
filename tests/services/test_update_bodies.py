"""Receipts and announcements as they are read: in pieces, within their bounds, and refused with their first fault."""

import json
from typing import Any

import pytest
from omni_rl_services.coordinator import update_bodies
from omni_rl_services.coordinator.update_bodies import at_once, read_announcement, read_receipt

from omni_rl.errors import InvalidRequestError
from omni_rl.pieces import PIECE

SAID = {"session": "s", "at": 1.0, "began": 0.0, "how": ["load_weights"], "tensors": 1, "changed": 1}
SUM = ["float32", 4, "00000000000000ff"]
HELD = [SUM, "", True]


def receipt(number: int = 3, **said: Any) -> Any:
    return at_once(read_receipt(number, json.dumps({**SAID, "parts": {"a": HELD}, **said}).encode()))


def announcement(number: int = 3, **said: Any) -> Any:
    return at_once(read_announcement(number, json.dumps({"at": 2.5, "parts": {"a": [SUM]}, **said}).encode()))


def adapter(name: str = "policy", *parts: str, **said: Any) -> dict[str, Any]:
    return {"name": name, "rank": 4, "parts": {part: [SUM] for part in parts}, **said}


def test_what_a_worker_told_is_all_there() -> None:
    found = receipt(7, opaque={"b": "packed"}, adapters=[adapter("policy", "x", "y")], worker=1, workers=2)
    assert (found.number, found.body.worker, found.body.session) == (7, 1, "s")
    assert found.body.opaque == {"b": "packed"}
    assert len(found.parts) == 1
    part = found.parts["a"]
    assert (part.sum.elements, part.sum.hashes, part.shard, list(found.parts.changed)) == (4, 0xFF, "", ["a"])
    (loaded,) = found.adapters.values()
    assert (loaded.name, len(loaded.parts)) == ("policy", 2)


def test_what_a_trainer_told_is_all_there() -> None:
    found = announcement(7, adapters=[adapter("policy", "x")], engines=["e0"], session="t")
    assert (found.number, found.at, found.engines, found.session) == (7, 2.5, ("e0",), "t")
    assert (len(found.parts), list(found.adapters)) == (1, ["policy"])


@pytest.mark.parametrize("read", [receipt, announcement])
def test_adapters_that_are_null_or_empty_are_none_and_one_twice_counts_as_told_last(read: Any) -> None:
    assert read(adapters=None).adapters == {}
    assert read(adapters=[]).adapters == {}
    assert len(read(adapters=[{"name": "a", "rank": 1}]).adapters["a"].parts) == 0
    assert len(read(adapters=[adapter("a", "x"), adapter("a", "y", "z")]).adapters["a"].parts) == 2


@pytest.mark.parametrize("read", [receipt, announcement])
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"adapters": {}}, "adapters: a list is expected"),
        ({"adapters": 1}, "adapters: a list is expected"),
        ({"adapters": [1]}, "adapters: each is an object"),
        ({"adapters": [{"name": "a", "rank": 1}, None]}, "adapters: each is an object"),
        ({"adapters": [{"rank": 1}]}, "name: Field required"),
        ({"adapters": [{"name": "a", "rank": 1, "parts": []}]}, "adapters.parts: Input should be a valid dictionary"),
        ({"adapters": [{"name": "a", "rank": 1, "parts": {"x": 5}}]}, "adapters.parts.x: "),
        ({"parts": [1]}, "parts: Input should be a valid dictionary"),
        ({"parts": {"a": 5}}, "parts.a: "),
        ({"parts": {"": HELD}}, "parts."),
        ({"at": "now"}, "at: "),
    ],
)
def test_what_is_no_report_is_refused_with_its_first_fault(read: Any, said: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read(**said)
    assert str(refused.value).startswith(why)


def test_a_body_without_its_parts_or_that_is_no_object_is_refused() -> None:
    said = {name: value for name, value in SAID.items() if name != "session"}
    for body, why in (
        (b"[]", "."),
        (b"{", "."),
        (b"{}", "Field required"),
        (json.dumps(said).encode(), "session: Field required"),
        (json.dumps({**SAID, "opaque": {"a": 1}}).encode(), "opaque.a: "),
        (json.dumps({**SAID, "opaque": [1]}).encode(), "opaque: Input should be a valid dictionary"),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            at_once(read_receipt(1, body))


@pytest.mark.parametrize(("length", "told"), [(100, 100), (194, 194), (250, 194)])
def test_a_path_and_a_message_are_cut_after_200_characters(length: int, told: int) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        receipt(parts={"x" * length: 5})
    path, _, message = str(refused.value).partition(": ")
    assert path.count("x") == told
    assert 0 < len(message) <= 200


def named(count: int) -> dict[str, Any]:
    return {f"n{number}": HELD for number in range(count)}


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ({"parts": named(4)}, False),
        ({"parts": named(5)}, True),
        ({"parts": named(4), "opaque": dict.fromkeys("ab", "why")}, False),
        ({"parts": named(4), "opaque": dict.fromkeys("abc", "why")}, True),
        ({"parts": {}, "opaque": dict.fromkeys("abcd", "why")}, False),
        ({"parts": {}, "opaque": dict.fromkeys("abcde", "why")}, True),
        ({"parts": named(2), "adapters": [adapter("p", *"wxyz")]}, False),
        ({"parts": named(3), "adapters": [adapter("p", *"wxyz")]}, True),
        ({"parts": {}, "adapters": [adapter("p", *"vwxyz")]}, True),
        ({"parts": {}, "adapters": [adapter("p", *"xyz"), adapter("q", *"xyz")]}, False),
        ({"parts": {}, "adapters": [adapter("p", *"xyz"), adapter("q", *"wxyz")]}, True),
    ],
)
def test_parts_have_their_most_of_one_kind_and_in_all(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], refused: bool
) -> None:
    """The bounds are four parts of one kind and six in all here."""
    monkeypatch.setattr(update_bodies, "MAX_PARTS", 4)
    monkeypatch.setattr(update_bodies, "MAX_ALL_PARTS", 6)
    if refused:
        with pytest.raises(InvalidRequestError, match="more than 4 parts, or 6 with those of all adapters"):
            receipt(**said)
    else:
        receipt(**said)


@pytest.mark.parametrize(
    ("names", "refused"), [("ab", False), ("abc", True), ("aba", False), ("abab", False), ("abac", True)]
)
def test_a_body_has_its_most_adapters_by_their_names(
    monkeypatch: pytest.MonkeyPatch, names: str, refused: bool
) -> None:
    monkeypatch.setattr(update_bodies, "MAX_ADAPTERS", 2)
    told = [adapter(name, "x") for name in names]
    for read in (receipt, announcement):
        if refused:
            with pytest.raises(InvalidRequestError, match="adapters: more than 2"):
                read(adapters=told)
        else:
            assert set(read(adapters=told).adapters) == set(names)


def pauses(reading: Any) -> int:
    return sum(1 for _ in reading)


@pytest.mark.parametrize("adapters", [1, 40])
def test_long_adapters_are_read_in_pieces_be_they_one_or_many(adapters: int) -> None:
    """What is parsed at once keeps everybody else from being answered for as long."""
    parts = 20_000 // adapters
    told = [adapter(f"a{n}", *(f"layers.{part}.lora_A" for part in range(parts))) for n in range(adapters)]
    body = json.dumps({"at": 2.5, "parts": {}, "adapters": told}).encode()
    assert len(body) > 8 * PIECE
    assert pauses(read_announcement(1, body)) >= len(body) // PIECE
    found = at_once(read_announcement(1, body))
    assert [len(one.parts) for one in found.adapters.values()] == [parts] * adapters
    with pytest.raises(InvalidRequestError):
        at_once(read_announcement(1, body.replace(b'"rank": 4', b'"rank": -4')))


def test_a_sentence_that_many_parts_share_takes_its_memory_once() -> None:
    def takes(*sentences: str) -> int:
        found: int = receipt(opaque={f"part-{n}": one for n, one in enumerate(sentences)}).nbytes
        return found

    long = "x" * 1000
    alone, shared, apart = takes(long), takes(long, long), takes(long, long[1:])
    assert 100 < shared - alone < 300
    assert apart - shared == pytest.approx(1000, abs=60)


def test_what_is_beside_the_parts_takes_memory_too() -> None:
    """Each report and each adapter is objects of a few kilobytes."""
    for read in (receipt, announcement):
        bare, one, two = (
            read(parts={}, adapters=[adapter(name, "x") for name in names]).nbytes for names in ("", "a", "ab")
        )
        assert 4000 < bare < 6000
        assert 4000 < one - bare == two - one < 6000
