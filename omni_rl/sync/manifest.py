"""Describes what a slab holds: name, dtype, shape, place and checksum of every tensor, and their version. Imports no
torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from omni_rl.errors import ConfigError, SlabError
from omni_rl.sync.nonfinite import NonFinite
from omni_rl.sync.version import WeightVersion

Origin = Literal["checkpoint", "trainer", "published", "directory"]
"""Whose weights they are: those that the run began with, our trainer's, another trainer's, or those of a directory. Our
trainer's own copy does not have weights of the last two."""
ALIGNMENT = 64
"""The bytes between possible places of tensors: a cache line, and a multiple of every dtype's size."""
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(frozen=True)
class Entry:
    """One released tensor: `nbytes` bytes at `offset` of the slab; `checksum` as `omni_rl.sync.checksum` prints it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    checksum: str = ""

    @property
    def nbytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Written:
    """What is known of tensors that were all written: checksums by name, and which of them hold NaN or infinity."""

    checksums: Mapping[str, str]
    nonfinite: tuple[NonFinite, ...]


class Manifest(BaseModel):
    """A sealed slab's table of contents. `nbytes` of the slab are in use, gaps between tensors included.

    `nonfinite` are the tensors that hold NaN or infinity; None where the slab's writer did not count. `origin` None:
    the writer did not say whose weights they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    version: WeightVersion
    entries: tuple[Entry, ...]
    nbytes: int
    nonfinite: tuple[NonFinite, ...] | None = None
    origin: Origin | None = None

    @classmethod
    def seal(
        cls,
        places: Iterable[Entry],
        checksums: Mapping[str, str],
        *,
        run: str,
        attempt: int,
        number: int,
        nonfinite: tuple[NonFinite, ...] | None = None,
        origin: Origin | None = None,
    ) -> "Manifest":
        """Return the manifest of tensors that were all written; the version's digest comes from the checksums."""
        entries = tuple(replace(entry, checksum=checksums[entry.name]) for entry in places)
        version = WeightVersion(run, attempt, number, root_digest(entries))
        return cls(version=version, entries=entries, nbytes=end(entries), nonfinite=nonfinite, origin=origin)

    @classmethod
    def parse(cls, text: str, origin: str) -> "Manifest":
        """Read a manifest from JSON. Raises `SlabError`, naming `origin`, for anything but a whole manifest of this
        schema."""
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            raise SlabError(f"{origin} is no manifest of a slab: {error}") from None
        if root_digest(manifest.entries) != manifest.version.digest:
            raise SlabError(f"{origin} was changed: its tensors do not have the digest that it states; fill it again")
        return manifest


def arrange(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[Entry, ...]:
    """Return places for tensors, given dtype and shape, in the order of their names: the same for every source of a
    model."""
    entries = []
    offset = 0
    for name, (dtype, shape) in sorted(tensors.items()):
        if dtype not in ITEM_BYTES:
            raise ConfigError(f"{name} is {dtype}, which is not synced; use one of {', '.join(ITEM_BYTES)}")
        entries.append(Entry(name, dtype, shape, offset))
        offset += -(-entries[-1].nbytes // ALIGNMENT) * ALIGNMENT
    return tuple(entries)


def end(entries: Iterable[Entry]) -> int:
    """Return the bytes of a slab that these tensors take."""
    return max((entry.offset + entry.nbytes for entry in entries), default=0)


def root_digest(entries: Iterable[Entry]) -> str:
    """Return blake3 (hex) over names, dtypes, shapes and checksums in the order of the names; places do not count.

    It is the digest of a `WeightVersion`: the same weights have it wherever they lie, and it costs no pass over them.
    """
    hasher = blake3()
    for entry in sorted(entries, key=lambda entry: entry.name):
        hasher.update(f"{entry.name} {entry.dtype} {list(entry.shape)} {entry.checksum}\n".encode())
    return hasher.hexdigest()
