"""Finds elements of weights that are NaN or infinite while the weights are copied, and writes sentences about them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from omni_rl.counting import counted

TENSORS_TOLD = 10
"""How many tensors are named; the others are counted."""
_EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F800000),
    "float64": (np.uint64, 0x7FF0000000000000),
}
"""For each dtype, as manifests write it: the integer type of its size, and the mask of the exponent's bits. All of them
are set in NaN and infinity alone. Other dtypes hold neither."""


@dataclass(frozen=True)
class NonFinite:
    """A released tensor in which `nan` and `infinite` of the `elements` are not finite."""

    name: str
    nan: int
    infinite: int
    elements: int

    def __str__(self) -> str:
        found = [f"{count} {what}" for count, what in ((self.nan, "NaN"), (self.infinite, "infinite")) if count]
        return f"{self.name}: {' and '.join(found)} of {counted(self.elements, 'element')}"


def told(found: Iterable[NonFinite]) -> tuple[str, ...]:
    """Return a sentence for each of the first `TENSORS_TOLD` tensors, and one that counts the others."""
    tensors = list(found)
    more = len(tensors) - TENSORS_TOLD
    return *map(str, tensors[:TENSORS_TOLD]), *([counted(more, "more tensor")] if more > 0 else [])


class Sieve(NamedTuple):
    """Numbers for a loop over 32-bit words: where (word & mask) + carry has one of the bits `flags`, the word may hold
    the exponent of a NaN or an infinity; where it never has, there is none. No carry leaves an element of two bytes."""

    mask: int
    carry: int
    flags: int

    @classmethod
    @cache
    def of(cls, dtype: str) -> "Sieve":
        """Return the sieve for elements of `dtype`; for float64 it looks at both halves, and suspects some finite
        values too."""
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
    """Return how many elements of `dtype` in contiguous bytes are NaN, and how many are infinite."""
    if dtype not in _EXPONENTS:
        return 0, 0
    integer, exponent = _EXPONENTS[dtype]
    size = data.view(integer) & integer((1 << 8 * np.dtype(integer).itemsize - 1) - 1)
    return int((size > integer(exponent)).sum()), int((size == integer(exponent)).sum())
