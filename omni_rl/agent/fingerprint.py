"""Layout-free fingerprints of weights: sums of hashed elements, which add up over shards and slices.

The hash of an element depends on its bits alone and is 0 for the bits of +0.0, so a sum over a tensor does not change
when the tensor is sliced, fused with others, reordered or padded with zeros. What it cannot see, for the same reason,
is elements that changed places within one part.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

MULTIPLIER = 0x9E3779B1
"""The odd number next to 2^32 over the golden ratio (Knuth, TAOCP 3, 6.4): multiplicative hashing of 32 bits."""
SALT = 0x85EBCA6B
SHIFT = 15
WIDE_MULTIPLIER = 0x9E3779B97F4A7C15
WIDE_SALT = 0xC2B2AE3D27D4EB4F
WIDE_SHIFT = 32
"""The shift for elements of 64 bits, as the other WIDE constants."""
MODULUS = 1 << 64
SQUARED = frozenset({"bfloat16", "float16", "float32", "float64"})
"""The dtypes whose elements are squared."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class Fingerprint:
    """A part's fingerprint. Two parts hold the same elements, in whatever order, if `same` says so.

    `hashes` is the sum modulo 2^64 of h(x) over the bits x of each element, where for up to 32 bits

        y = x * MULTIPLIER mod 2^32,   y = y xor (y >> SHIFT),   h(x) = y * (x xor SALT) mod 2^64

    and for 64 bits the same modulo 2^64 with the wide constants. `squares` is the sum of squares of the finite
    elements, right to about one part in 10^6 and meant for sizes alone; it is 0.0 for integers and for floats of one
    byte. `nonfinite` counts NaN and infinite elements.
    """

    dtype: str
    elements: int
    hashes: int
    squares: float = 0.0
    nonfinite: int = 0

    @property
    def zero(self) -> bool:
        """Whether every element is +0.0 (or the integer 0)."""
        return self.hashes == 0 and self.squares == 0.0 and self.nonfinite == 0

    @property
    def vanishes(self) -> bool:
        """Whether nothing is left of the part: zeros of either sign, as a scale of 0 makes them, or values so small
        that their squares are 0."""
        return self.zero or (self.dtype in SQUARED and self.squares == 0.0 and self.nonfinite == 0)

    def same(self, other: "Fingerprint") -> bool:
        """Return whether both are of the same elements, to the bit, in the same dtype."""
        return (self.dtype, self.elements, self.hashes) == (other.dtype, other.elements, other.hashes)

    def at(self, number: int) -> "Fingerprint":
        """Return the part's share in a sum over numbered parts, in which two parts that are swapped must show: its
        hashes times an odd number. Shares of shards still add up."""
        return replace(self, hashes=self.hashes * (2 * number + 1) % MODULUS)

    def __add__(self, other: "Fingerprint") -> "Fingerprint":
        """Return the fingerprint of both parts together. Raises `ValueError` if their dtypes differ."""
        if self.dtype != other.dtype:
            raise ValueError(f"fingerprints of {self.dtype} and {other.dtype} do not add up")
        return Fingerprint(
            self.dtype,
            self.elements + other.elements,
            (self.hashes + other.hashes) % MODULUS,
            self.squares + other.squares,
            self.nonfinite + other.nonfinite,
        )


def total(parts: Iterable[Fingerprint]) -> Fingerprint:
    """Return the fingerprint of all the parts together. Raises `ValueError` if there are none, or their dtypes
    differ."""
    found: Fingerprint | None = None
    for part in parts:
        found = part if found is None else found + part
    if found is None:
        raise ValueError("no parts to add up")
    return found


def hash_sum(words: NDArray[Any]) -> int:
    """Return the sum modulo 2^64 of the hashes of unsigned integers, [N], of 8, 16, 32 or 64 bits, in numpy alone."""
    found = 0
    for start in range(0, words.size, _PIECE):
        piece = words[start : start + _PIECE]
        if piece.dtype.itemsize == 8:
            mixed = piece * np.uint64(WIDE_MULTIPLIER)
            mixed ^= mixed >> np.uint64(WIDE_SHIFT)
            hashed = mixed * (piece ^ np.uint64(WIDE_SALT))
        else:
            bits = piece.astype(np.uint32)
            narrow = bits * np.uint32(MULTIPLIER)
            narrow ^= narrow >> np.uint32(SHIFT)
            hashed = narrow.astype(np.uint64) * (bits ^ np.uint32(SALT)).astype(np.uint64)
        found += int(hashed.sum(dtype=np.uint64))
    return found % MODULUS
