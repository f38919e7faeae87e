"""Long JSON documents, read in pieces: the same values as at once, and nothing let in that is not JSON."""

import json
from typing import Any

import pydantic_core
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_rl import pieces
from omni_rl.errors import InvalidRequestError
from omni_rl.pieces import BLOCK, PIECE, Pieces, load

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text('a,{}[]":\\é🦜', max_size=3)
SCALARS |= st.builds(lambda text, times: times * text, st.text('a,{"\\é', min_size=1, max_size=4), st.integers(60, 90))
"""The last ones are longer than a short piece."""
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text('k",{\\', max_size=3), inner, max_size=8),
    max_leaves=60,
)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of some bytes, so that short documents have many."""
    monkeypatch.setattr(pieces, "BLOCK", 64)
    monkeypatch.setattr(pieces, "PIECE", 128)
    monkeypatch.setattr(pieces, "DEEP", 64)


@pytest.mark.usefixtures("short")
@settings(max_examples=300)
@given(DOCUMENTS, st.booleans(), st.booleans())
def test_a_document_is_what_it_is_at_once(document: Any, ascii_only: bool, spaced: bool) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=1 if spaced else None).encode()
    assert load(text) == document


@pytest.mark.usefixtures("short")
@settings(max_examples=300)
@given(DOCUMENTS, st.data())
def test_what_is_no_json_is_refused_as_it_is_at_once(document: Any, data: st.DataObject) -> None:
    text = bytearray(json.dumps([document] * 4).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from((b"", b",", b"}", b"]", b'"', b"\\")))
    try:
        expected = pydantic_core.from_json(bytes(text))
    except ValueError:
        with pytest.raises(InvalidRequestError):
            load(bytes(text))
    else:
        assert load(bytes(text)) == expected


@pytest.mark.parametrize(
    "text", [b'{"a": 1,}', b"{,}", b"[1,,2]", b"[1] 2", b'{"a": [1]]', b"[1", b"", b'{"a": [1] 2, "b": 3}']
)
def test_commas_and_brackets_have_to_be_right_in_long_documents_too(text: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        load(text)
    with pytest.raises(InvalidRequestError):
        load(text[:1] + b" " * PIECE + text[1:])


def test_every_piece_is_short_or_one_member() -> None:
    long = "x" * (3 * PIECE)
    body = json.dumps({**{f"k{n}": n for n in range(50_000)}, "long": long, "after": 1}).encode()
    found = [body[first:last] for first, last in Pieces(body, 0, b"{")]
    longer = [piece for piece in found if len(piece) > PIECE]
    assert [json.loads(b"{" + piece + b"}") for piece in longer] == [{"long": long}]
    assert len(found) > len(body) / (2 * BLOCK)


def test_brackets_without_end_are_refused() -> None:
    for opening in (b"[", b'{"a":'):
        with pytest.raises(InvalidRequestError):
            load(opening * (1 << 20))
