"""Stores what is known of many parts as columns: they take a tenth of the memory of objects for each part, and the
garbage collector has nothing to look through."""

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar
from weakref import WeakValueDictionary

from omni_rl.agent.fingerprint import Fingerprint
from omni_rl.agent.workers import Held
from omni_rl.api.updates import HeldPart, Sum

T = TypeVar("T")
PER_SUM, PER_PART, PER_NAME = 36, 12, 160
"""The bytes of a fingerprint's row, of what else is known of its part, and of a name's place in the index."""


class Names:
    """Names of parts in their order. Equal tuples of names are stored once: all workers of a model have the same."""

    _known: ClassVar[WeakValueDictionary[tuple[str, ...], "Names"]] = WeakValueDictionary()

    def __init__(self, names: tuple[str, ...]) -> None:
        """Make the index of names; callers use `of`."""
        self.names = names
        self.rows = {name: row for row, name in enumerate(names)}
        self.nbytes = sum(map(sys.getsizeof, names)) + PER_NAME * len(names)

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Return the one object that holds these names."""
        wanted = tuple(names)
        found = cls._known.get(wanted)
        return cls._known.setdefault(wanted, cls(wanted)) if found is None else found

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Sums:
    """Fingerprints as columns, a row each. `dtypes` numbers the dtypes, and `dtype` has that number in each row."""

    dtypes: dict[str, int] = field(default_factory=dict)
    dtype: "array[int]" = field(default_factory=lambda: array("I"))
    elements: "array[int]" = field(default_factory=lambda: array("q"))
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    squares: "array[float]" = field(default_factory=lambda: array("d"))
    nonfinite: "array[int]" = field(default_factory=lambda: array("q"))

    def __post_init__(self) -> None:
        self._by_number: list[str] = list(self.dtypes)

    def __len__(self) -> int:
        return len(self.hashes)

    def add(self, one: Sum) -> None:
        """Append a fingerprint as a row."""
        number = self.dtypes.setdefault(one.dtype, len(self.dtypes))
        if number == len(self._by_number):
            self._by_number.append(one.dtype)
        self.dtype.append(number)
        self.elements.append(one.elements)
        self.hashes.append(int(one.hashes, 16))
        self.squares.append(one.squares)
        self.nonfinite.append(one.nonfinite)

    def __getitem__(self, row: int) -> Fingerprint:
        dtype = self._by_number[self.dtype[row]]
        return Fingerprint(dtype, self.elements[row], self.hashes[row], self.squares[row], self.nonfinite[row])


class _Columns(Mapping[str, T]):
    """Parts by their names; the object of a part is made of its row when it is asked for."""

    names: Names

    def __contains__(self, name: object) -> bool:
        return name in self.names.rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.names.names)

    def __len__(self) -> int:
        return len(self.names.names)


class HeldColumns(_Columns[Held]):
    """The parts that a worker holds."""

    def __init__(self, names: Names, sums: Sums, shards: Sequence[str], changed: bytes) -> None:
        """Make the columns; callers use `HeldRows`. `changed` has for each part 1 if the worker's update changed it."""
        self.names, self._sums, self._shards, self._changed = names, sums, shards, changed

    def __getitem__(self, name: str) -> Held:
        row = self.names.rows[name]
        return Held(self._sums[row], self._shards[row])

    @property
    def changed(self) -> Iterator[str]:
        """The names of the parts that the worker's update changed."""
        return (name for name, changed in zip(self.names.names, self._changed, strict=True) if changed)

    def unchanged(self) -> "HeldColumns":
        """Return the same parts, with none marked as changed."""
        return HeldColumns(self.names, self._sums, self._shards, bytes(len(self)))

    @property
    def nbytes(self) -> int:
        """The bytes that the columns take in memory, without the names."""
        return len(self) * (PER_SUM + PER_PART)


class HeldRows:
    """Collects a worker's parts as they are read."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._sums, self._shards, self._changed = Sums(), list[str](), bytearray()
        self._known: dict[str, str] = {}

    def add(self, name: str, part: HeldPart) -> None:
        """Add a part. Raises `ValueError` for a second part of the same name."""
        if self._rows.setdefault(name, len(self._rows)) != len(self._sums):
            raise ValueError(f"{name} is reported twice")
        self._sums.add(part.sum)
        self._shards.append(self._known.setdefault(part.shard, part.shard))
        self._changed.append(part.changed)

    def __len__(self) -> int:
        return len(self._rows)

    def done(self) -> HeldColumns:
        """Return all parts that were added, as columns."""
        return HeldColumns(Names.of(self._rows), self._sums, self._shards, bytes(self._changed))


class SumColumns(_Columns[tuple[Fingerprint, ...]]):
    """The parts of a trainer, or of an adapter, each in several dtypes. `ends` has the row after each part's last."""

    def __init__(self, names: Names, sums: Sums, ends: "array[int]") -> None:
        """Make the columns; callers use `SumRows`."""
        self.names, self._sums, self._ends = names, sums, ends

    def __getitem__(self, name: str) -> tuple[Fingerprint, ...]:
        at = self.names.rows[name]
        return tuple(self._sums[row] for row in range(self._ends[at - 1] if at else 0, self._ends[at]))

    @property
    def nbytes(self) -> int:
        """The bytes that the columns take in memory, without the names."""
        return len(self) * PER_PART + len(self._sums) * PER_SUM


class SumRows:
    """Collects a trainer's parts as they are read."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._sums, self._ends = Sums(), array("I")

    def add(self, name: str, sums: Iterable[Sum]) -> None:
        """Add a part. Raises `ValueError` for a second part of the same name."""
        if self._rows.setdefault(name, len(self._rows)) != len(self._ends):
            raise ValueError(f"{name} is reported twice")
        for one in sums:
            self._sums.add(one)
        self._ends.append(len(self._sums))

    def __len__(self) -> int:
        return len(self._rows)

    def done(self) -> SumColumns:
        """Return all parts that were added, as columns."""
        return SumColumns(Names.of(self._rows), self._sums, self._ends)
