"""Elements of weights that are NaN or infinite: how they are found while weights are copied, and how they are told."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TENSORS_TOLD = 10
"""Tensors that are named; of more, there is a count."""
_EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F800000),
    "float64": (np.uint64, 0x7FF0000000000000),
}
"""By dtype as manifests write it: bits of an element as an integer, of which those that are set make the exponent. All
of them are set in NaN and infinity alone. Other dtypes hold neither."""


@dataclass(frozen=True)
class NonFinite:
    """A released tensor in which `nan` and `infinite` of its `elements` are no finite numbers."""

    name: str
    nan: int
    infinite: int
    elements: int

    def __str__(self) -> str:
        found = [f"{count} {what}" for count, what in ((self.nan, "NaN"), (self.infinite, "infinite")) if count]
        return f"{self.name}: {' and '.join(found)} of {self.elements} elements"


def told(found: Iterable[NonFinite]) -> tuple[str, ...]:
    """A sentence for each of the first `TENSORS_TOLD` tensors, and one that counts the others."""
    tensors = list(found)
    more = len(tensors) - TENSORS_TOLD
    return *map(str, tensors[:TENSORS_TOLD]), *([f"{more} more tensors"] if more > 0 else [])


class Sieve(NamedTuple):
    """Numbers for a loop over 32-bit words: where (word & mask) + carry has one of the bits `flags`, the word may hold
    the exponent of a NaN or an infinity; where it never has, there is none. No carry leaves an element of two bytes."""

    mask: int
    carry: int
    flags: int

    @classmethod
    @cache
    def of(cls, dtype: str) -> "Sieve":
        """For elements of `dtype`; of float64 it looks at both halves, and lets too much through."""
        if dtype not in _EXPONENTS:
            return cls(0, 0, 0)
        integer, exponent = _EXPONENTS[dtype]
        bits = 8 * np.dtype(integer).itemsize
        if bits == 64:
            bits, exponent = 32, exponent >> 32
        sign = 1 << bits - 1
        every = sum(1 << place for place in range(0, 32, bits))
        return cls(*(number * every for number in (sign - 1, sign - exponent, sign)))


def count(data: NDArray[np.uint8], dtype: str) -> tuple[int, int]:
    """How many elements of `dtype` in contiguous bytes are NaN, and how many infinite."""
    if dtype not in _EXPONENTS:
        return 0, 0
    integer, exponent = _EXPONENTS[dtype]
    size = data.view(integer) & integer((1 << 8 * np.dtype(integer).itemsize - 1) - 1)
    return int((size > integer(exponent)).sum()), int((size == integer(exponent)).sum())
