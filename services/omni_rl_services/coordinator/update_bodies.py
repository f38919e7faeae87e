"""Reads receipts and announcements piece by piece, into columns."""

import sys
from collections.abc import Generator
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from omni_rl.agent.columns import HeldRows, SumRows
from omni_rl.agent.compared_adapters import Loaded
from omni_rl.agent.judging import Announcement, Receipt
from omni_rl.api.updates import (
    MAX_ADAPTERS,
    MAX_ALL_PARTS,
    MAX_PARTS,
    Adapter,
    AnnouncementBody,
    HeldPart,
    PartName,
    ReceiptBody,
    Sentence,
    Sum,
)
from omni_rl.errors import InvalidRequestError
from omni_rl.pieces import PIECE, Pieces, Reading, after_space, nothing_else, parsed, read_document, read_object

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
R = TypeVar("R", HeldRows, SumRows)
EACH = 4096
"""Bytes that a receipt or an announcement takes beside its parts."""
PER_SENTENCE = 100
"""Bytes of an entry of a dictionary, beside its texts."""
_HELD: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[PartName, HeldPart])
_SUMS: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[PartName, tuple[Sum, ...]])
_OPAQUE = TypeAdapter(dict[PartName, Sentence])


def read_receipt(number: int, body: bytes) -> Generator[None, None, Receipt]:
    """Read a worker's receipt of its engine's update `number`, pausing after each piece. Raises `InvalidRequestError`
    for what is no receipt, with its first fault."""
    count = _Count()
    held, opaque, adapters = _held(count), _Opaque(count), _Adapters(count)
    rest: dict[str, Any] = {}
    yield from read_document(body, {"parts": held, "opaque": opaque, "adapters": adapters}, rest)
    if held.seen:
        rest["parts"] = {}
    told = _valid(ReceiptBody, rest).model_copy(update={"opaque": opaque.found})
    parts, loaded = held.rows.done(), adapters.found
    size = EACH + parts.nbytes + opaque.nbytes + sum(EACH + one.parts.nbytes for one in loaded.values())
    return Receipt(number, told, parts, loaded, size)


def read_announcement(number: int, body: bytes) -> Generator[None, None, Announcement]:
    """Read a trainer's announcement of its update `number`, pausing after each piece. Raises `InvalidRequestError`."""
    count = _Count()
    sums, adapters = _sums(count, "parts"), _Adapters(count)
    rest: dict[str, Any] = {}
    yield from read_document(body, {"parts": sums, "adapters": adapters}, rest)
    if sums.seen:
        rest["parts"] = {}
    told = _valid(AnnouncementBody, rest)
    parts, loaded = sums.rows.done(), adapters.found
    size = EACH + parts.nbytes + sum(EACH + one.parts.nbytes for one in loaded.values())
    return Announcement(number, told.at, parts, loaded, told.engines, told.session, size)


def at_once(reading: Generator[None, None, T]) -> T:
    """Run a reading to its end, and return its result."""
    try:
        while True:
            next(reading)
    except StopIteration as done:
        found: T = done.value
        return found


class _Count:
    """Counts the parts of a body, those of its adapters among them."""

    def __init__(self) -> None:
        self._left = MAX_ALL_PARTS

    def take(self, where: str, has: int, more: int) -> None:
        """Count `more` parts. Raises `InvalidRequestError` for more than there may be of one kind, or in all."""
        self._left -= more
        if has + more > MAX_PARTS or self._left < 0:
            raise InvalidRequestError(
                f"{where}: more than {MAX_PARTS:,} parts, or {MAX_ALL_PARTS:,} with those of all adapters"
            )


class _Object:
    """Reads a long member that is an object. `seen` says whether there is one."""

    def __init__(self, count: _Count, where: str) -> None:
        self.count, self.where, self.seen = count, where, False

    def whole(self, value: Any) -> None:
        """Take the whole object, or some of its members."""
        self.seen = True
        try:
            self.take(value)
        except ValueError as error:
            raise _refusal(self.where, error) from None

    def long(self, body: bytes, start: int) -> Reading:
        """Take the object piece by piece."""
        pieces = Pieces(body, start, b"{")
        for first, last in pieces:
            if last - first > PIECE:
                raise InvalidRequestError(f"{self.where}: one of them is longer than {PIECE:,} bytes")
            self.whole(parsed(b"{", body[first:last]))
            yield
        return pieces.end

    def take(self, value: Any) -> None:
        """Add the members of `value`. Raises `ValueError`."""
        raise NotImplementedError


class _Parts(_Object, Generic[R]):
    """Reads parts into `rows`, each validated as a value of `of`."""

    def __init__(self, count: _Count, where: str, of: TypeAdapter[dict[str, Any]], rows: R) -> None:
        super().__init__(count, where)
        self.rows: R = rows
        self._of = of

    def take(self, value: Any) -> None:
        found = self._of.validate_python(value)
        self.count.take(self.where, len(self.rows), len(found))
        for name, part in found.items():
            self.rows.add(name, part)


def _held(count: _Count) -> _Parts[HeldRows]:
    return _Parts(count, "parts", _HELD, HeldRows())


def _sums(count: _Count, where: str) -> _Parts[SumRows]:
    return _Parts(count, where, _SUMS, SumRows())


class _Opaque(_Object):
    def __init__(self, count: _Count) -> None:
        super().__init__(count, "opaque")
        self.found: dict[str, str] = {}
        self.nbytes = 0
        self._known: dict[str, str] = {}

    def take(self, value: Any) -> None:
        found = _OPAQUE.validate_python(value)
        self.count.take(self.where, len(self.found), len(found))
        for name, why in found.items():
            if why not in self._known:
                self.nbytes += sys.getsizeof(why)
            self.found[name] = self._known.setdefault(why, why)
            self.nbytes += sys.getsizeof(name) + PER_SENTENCE


class _Adapters:
    """Reads the adapters, by their names."""

    def __init__(self, count: _Count) -> None:
        self.count = count
        self.found: dict[str, Loaded] = {}

    def whole(self, value: Any) -> None:
        """Take a list of adapters; null is an empty one."""
        if value is None:
            return
        if not isinstance(value, list):
            raise InvalidRequestError("adapters: a list is expected")
        for one in value:
            if not isinstance(one, dict):
                raise InvalidRequestError("adapters: each is an object")
            sums = _sums(self.count, "adapters.parts")
            if "parts" in one:
                sums.whole(one["parts"])
            self._add({name: what for name, what in one.items() if name != "parts"}, sums)

    def long(self, body: bytes, start: int) -> Reading:
        """Take the list piece by piece, and a long adapter in pieces of its own."""
        pieces = Pieces(body, start, b"[")
        for first, last in pieces:
            if last - first <= PIECE:
                self.whole(parsed(b"[", body[first:last]))
            else:
                sums, rest = _sums(self.count, "adapters.parts"), dict[str, Any]()
                end = yield from read_object(body, after_space(body, first), {"parts": sums}, rest)
                nothing_else(body, end, last)
                self._add(rest, sums)
            yield
        return pieces.end

    def _add(self, rest: dict[str, Any], sums: _Parts[SumRows]) -> None:
        told = _valid(Adapter, rest)
        if len(self.found) == MAX_ADAPTERS and told.name not in self.found:
            raise InvalidRequestError(f"adapters: more than {MAX_ADAPTERS}")
        self.found[told.name] = Loaded(told.name, told.norm, sums.rows.done())


def _valid(model: type[M], values: dict[str, Any]) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _refusal("", error) from None


def _refusal(where: str, error: ValueError) -> InvalidRequestError:
    if not isinstance(error, ValidationError):
        return InvalidRequestError(f"{where}: {str(error)[:200]}")
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(map(str, (*([where] if where else []), *first["loc"]))) or "the body"
    return InvalidRequestError(f"{path[:200]}: {first['msg'][:200]}")
