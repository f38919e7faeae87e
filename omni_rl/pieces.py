"""Reads a large JSON document in pieces, so that the reader holds the interpreter no longer than one piece takes.

Parsing the whole document is one call into C. For what the agent of a large model's engine posts, the call takes a
second, in which Python runs no other thread: not the event loop's, either.
"""

import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from omni_rl.errors import InvalidRequestError

BLOCK = 64 << 10
"""How many bytes are searched for commas and brackets at once. A piece of several members is at most as long; a piece
of one member is as long as the member."""
PIECE = 2 * BLOCK
"""How many bytes are parsed at once, at most."""
_OPENINGS, _CLOSINGS = b"{[", b"}]"
_KEY = re.compile(rb'[ \t\r\n]*("(?:[^"\\]|\\.){0,1024}")[ \t\r\n]*:[ \t\r\n]*')
_SPACE = re.compile(rb"[ \t\r\n]*")
DEEP = 8
"""How many objects and lists that are each longer than a piece may lie inside one another."""
Reading = Generator[None, None, int]
"""A generator that reads a value, pauses after each piece, and returns the position where the value ends."""


class Member(Protocol):
    """Takes the value of an object's member that may be long."""

    def whole(self, value: Any) -> None:
        """Take a value that came in one piece, parsed."""

    def long(self, body: bytes, start: int) -> Reading:
        """Read a value that is longer than a piece and begins at position `start` of `body`."""


def read_document(body: bytes, long: Mapping[str, Member], rest: dict[str, Any]) -> Reading:
    """Read an object: hand each member that `long` names to its reader there, and put all others into `rest`.

    Raises:
        InvalidRequestError: `body` is no JSON object, or another of its members is longer than a piece.
    """
    end = yield from read_object(body, after_space(body, 0), long, rest)
    nothing_else(body, end, len(body))
    return end


def read_object(body: bytes, start: int, long: Mapping[str, Member], rest: dict[str, Any]) -> Reading:
    """Read an object that begins at `start`, with `long` and `rest` as for `read_document`; return where the object
    ends."""
    pieces = Pieces(body, start, b"{")
    for first, last in pieces:
        if last - first <= PIECE:
            for name, value in parsed(b"{", body[first:last]).items():
                if name in long:
                    long[name].whole(value)
                else:
                    rest[name] = value
        else:
            name, at = _key(body, first)
            if name not in long:
                raise InvalidRequestError(f"{name[:200]}: longer than {PIECE:,} bytes")
            end = yield from long[name].long(body, at)
            nothing_else(body, end, last)
        yield
    return pieces.end


def load(body: bytes) -> Any:
    """Return the value of a whole document. Raises `InvalidRequestError` if it is not JSON or is nested too deep."""
    start = after_space(body, 0)
    if len(body) <= PIECE:
        return _json(body)
    return _value(body, start, len(body), DEEP)


def _value(body: bytes, start: int, last: int, deep: int) -> Any:
    """Return the value between two positions. A long text is parsed as one piece, which costs little more than its
    copy."""
    if body[start : start + 1] not in (b"{", b"["):
        return _json(body[start:last])
    value, end = _long(body, start, deep)
    nothing_else(body, end, last)
    return value


def _long(body: bytes, start: int, deep: int) -> tuple[dict[str, Any] | list[Any], int]:
    """Return the object or list that begins at `start`, and the position where it ends."""
    if deep == 0:
        raise InvalidRequestError(f"not the JSON that is asked for: long values are nested more than {DEEP} deep")
    if body[start : start + 1] == b"{":
        members: dict[str, Any] = {}
        pieces = Pieces(body, start, b"{")
        for first, last in pieces:
            if last - first <= PIECE:
                members |= parsed(b"{", body[first:last])
            else:
                name, at = _key(body, first)
                members[name] = _value(body, at, last, deep - 1)
        return members, pieces.end
    elements: list[Any] = []
    pieces = Pieces(body, start, b"[")
    for first, last in pieces:
        if last - first <= PIECE:
            elements += parsed(b"[", body[first:last])
        else:
            elements.append(_value(body, after_space(body, first), last, deep - 1))
    return elements, pieces.end


def parsed(opening: bytes, members: bytes) -> Any:
    """Return the object or list of some members' text. Raises `InvalidRequestError` where they are not JSON."""
    return _json(opening + members + {b"{": b"}", b"[": b"]"}[opening])


def _json(text: bytes) -> Any:
    try:
        return pydantic_core.from_json(text)
    except ValueError as error:
        raise InvalidRequestError(f"not JSON: {str(error)[:200]}") from None


class Pieces:
    """Iterates over the pieces of an object or list, as pairs of positions. A piece lies between two commas, and has
    several short members, or one that may be long. `end` is where the container ends, once the iteration is over."""

    def __init__(self, body: bytes, start: int, opening: bytes) -> None:
        """Start at the container that begins at `start`. Raises `InvalidRequestError` where there is none."""
        if body[start : start + 1] != opening:
            raise InvalidRequestError(f"not the JSON that is asked for: {opening.decode()} is expected at byte {start}")
        self._body = body
        self._opening = opening
        self._begin = start + 1
        self.end = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        begin, any_before = self._begin, False
        for commas, end in self._looked_through():
            cuts = [] if commas.size == 0 else sorted({int(commas[0]), int(commas[-1])})
            for cut in cuts:
                yield self._piece(begin, cut)
                begin, any_before = cut + 1, True
            if end:
                self.end = end
                if self._body[end - 1] != _CLOSINGS[_OPENINGS.index(self._opening)]:
                    raise InvalidRequestError(f"not JSON: another bracket is expected at byte {end - 1}")
                if any_before or after_space(self._body, begin) < end - 1:
                    yield self._piece(begin, end - 1)
                return
        raise InvalidRequestError("not JSON: it ends too early")

    def _piece(self, first: int, last: int) -> tuple[int, int]:
        if after_space(self._body, first) >= last:
            raise InvalidRequestError(f"not JSON: a value is expected at byte {last}")
        return first, last

    def _looked_through(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Yield, for each block, the positions of the commas between two members, and that of the container's end (0 if
        it is not in the block)."""
        depth, inside, slashes = 1, 0, 0
        for at in range(self._begin, len(self._body), BLOCK):
            block = np.frombuffer(self._body, np.uint8, min(BLOCK, len(self._body) - at), at)
            quotes = block == ord('"')
            if slashes or self._body.find(b"\\", at, at + BLOCK) >= 0:
                escaped, slashes = _escaped(block, slashes)
                quotes &= ~escaped
            within = (np.cumsum(quotes, dtype=np.uint8) + np.uint8(inside)) & 1
            outside = within == 0
            inside = int(within[-1])
            opened = ((block == ord("{")) | (block == ord("["))) & outside
            closed = ((block == ord("}")) | (block == ord("]"))) & outside
            depths = depth + np.cumsum(opened.astype(np.int8) - closed.astype(np.int8), dtype=np.int32)
            depth = int(depths[-1])
            commas = np.flatnonzero((block == ord(",")) & outside & (depths == 1))
            ends = np.flatnonzero(closed & (depths == 0))
            end = int(ends[0]) if ends.size else -1
            yield (commas if end < 0 else commas[commas < end]) + at, at + end + 1 if end >= 0 else 0
            if end >= 0:
                return


def _escaped(block: NDArray[np.uint8], before: int) -> tuple[NDArray[np.bool_], int]:
    """Return which bytes follow an odd number of backslashes, and how many (modulo 2) end the block. `before` is how
    many end the block before it."""
    where = np.arange(block.size)
    last_other = np.maximum.accumulate(np.where(block == ord("\\"), -1, where))
    run = np.where(last_other < 0, where + 1 + before, where - last_other)
    return np.concatenate(([before], run[:-1])) % 2 == 1, int(run[-1]) % 2


def _key(body: bytes, start: int) -> tuple[str, int]:
    """Return the name of a member, and the position where its value begins."""
    found = _KEY.match(body, start)
    if found is None:
        raise InvalidRequestError(f"not JSON: a name is expected at byte {start}")
    (name,) = parsed(b"[", found[1])
    return str(name), found.end()


def after_space(body: bytes, start: int) -> int:
    """Return the position of the first byte that is no white space."""
    found = _SPACE.match(body, start)
    assert found is not None, "no space is some"
    return found.end()


def nothing_else(body: bytes, start: int, end: int) -> None:
    """Raise `InvalidRequestError` where there is more than white space between two positions."""
    if after_space(body, start) < end:
        raise InvalidRequestError(f"not JSON: nothing is expected at byte {start}")
