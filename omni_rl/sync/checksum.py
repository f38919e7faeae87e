"""Computes position-sensitive checksums of weights: faster than a copy, and additive over parts of a tensor."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.sync.nonfinite import Sieve, count

F = TypeVar("F", bound=Callable[..., object])
U = TypeVar("U", np.uint64, NDArray[np.uint64])
WORD = 4
"""The bytes of a word. A tensor's last word is filled up with zero bytes."""
LANES = 3
_BLOCK = 1024
_NOTHING = Sieve.of("uint8")


class Checksum:
    """Checksum of a tensor's bytes, or the share that some of its bytes have in it; shares add up.

    The bytes are little-endian words x_0, x_1, ... of 32 bits. The lanes, each modulo 2^64, are

        S = sum x_i        T = sum i x_i        U = sum r_(i mod 1024) m(i div 1024) x_i

    S and T are Fletcher's sums (Fletcher 1982, "An arithmetic checksum for serial transmissions") with words half as
    wide as the sums: two changed words i, j escape S only if one changed by d and the other by -d, and then T changes
    by (i - j) d, which is below 2^64 in size. So every change of one or two words (a flipped bit, a swapped pair) is
    found, in any tensor below 16 GiB. U is a multilinear hash (Carter and Wegman 1979; Lemire and Kaser 2014, "Strongly
    universal string hashing is fast") whose odd weights come from splitmix64: for damage that cancels in S and T, such
    as +d, -2d, +d in a row.

    `nan` and `infinite` count such elements where the bytes were copied as elements of a dtype; the text of a checksum
    does not contain them.
    """

    def __init__(self, lanes: NDArray[np.uint64], nan: int = 0, infinite: int = 0) -> None:
        self.lanes = lanes
        self.nan = nan
        self.infinite = infinite

    @classmethod
    def of(cls, data: NDArray[np.uint8], start: int = 0) -> "Checksum":
        """Return the share of `data`, contiguous bytes that begin `start` bytes into their tensor."""
        lanes = np.zeros(LANES, np.uint64)
        before = start % WORD
        after = -(before + data.size) % WORD
        if before or data.ctypes.data % WORD:
            # The data does not begin at a word: zero bytes around it, which change no sum, make up whole words.
            data = np.concatenate([np.zeros(before, np.uint8), data, np.zeros(after, np.uint8)])
            start, after = start - before, 0
        whole = data.size - data.size % WORD
        _accumulate(data[:whole].view(np.uint32), None, start // WORD, _WEIGHTS, lanes, *_NOTHING[:2])
        if after:
            last = np.concatenate([data[whole:], np.zeros(after, np.uint8)])
            _accumulate(last.view(np.uint32), None, (start + whole) // WORD, _WEIGHTS, lanes, *_NOTHING[:2])
        return cls(lanes)

    @classmethod
    def of_copied(
        cls, data: NDArray[np.uint8], target: NDArray[np.uint8], start: int = 0, dtype: str = "uint8"
    ) -> "Checksum":
        """Return what `of` returns, with counts, and copy `data`, whole elements of `dtype`, to `target`.

        Each byte is read once for the sum, the counts and the copy, so that all three are of the same value.
        """
        whole = data.size - data.size % WORD
        if start % WORD or data.ctypes.data % WORD or target.ctypes.data % WORD:
            whole = 0
        lanes = np.zeros(LANES, np.uint64)
        sieve = Sieve.of(dtype)
        suspicious = whole < data.size
        if whole:
            words, copy = data[:whole].view(np.uint32), target[:whole].view(np.uint32)
            seen = _accumulate(words, copy, start // WORD, _WEIGHTS, lanes, sieve.mask, sieve.carry)
            suspicious |= bool(int(seen) & sieve.flags)
        found = cls(lanes, *(count(data, dtype) if suspicious else (0, 0)))
        if whole == data.size:
            return found
        target[whole:] = data[whole:]
        return cls.total((found, cls.of(data[whole:], start + whole)))

    @classmethod
    def of_tensor(cls, tensor: torch.Tensor) -> "Checksum":
        """Return the checksum of a whole tensor on the CPU, whatever its strides."""
        return cls.of(as_bytes(tensor))

    @classmethod
    def total(cls, shares: "Iterable[Checksum]") -> "Checksum":
        """Return the sum of shares."""
        lanes = np.zeros(LANES, np.uint64)
        nan, infinite = 0, 0
        for share in shares:
            lanes += share.lanes
            nan += share.nan
            infinite += share.infinite
        return cls(lanes, nan, infinite)

    def __str__(self) -> str:
        """Return the lanes as 48 hex digits."""
        return "".join(f"{int(lane):016x}" for lane in self.lanes)


def as_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return a tensor's elements in row-major order as bytes: a view if it is contiguous and on the CPU, else a
    copy."""
    plain: NDArray[np.uint8] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return plain


def _splitmix64(index: U) -> U:
    """Return the `index`-th output of splitmix64 seeded with 0 (Steele, Lea and Flood 2014)."""
    mixed = (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


_WEIGHTS = (_splitmix64(np.arange(_BLOCK, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def _compiled(function: F) -> F:
    compiled: F = numba.njit(nogil=True, cache=True)(function)
    return compiled


_mix = _compiled(_splitmix64)


@_compiled
def _sums(
    words: NDArray[np.uint32],
    weights: NDArray[np.uint32],
    target: NDArray[np.uint32] | None,
    mask: np.uint64,
    carry: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Return the three sums of one block's words (plain, by place in the block, by weight) and the bits that the sieve
    saw.

    With a target, each word is stored there and put through the sieve while it is in a register, which makes the copy
    about 2 % slower. Without one, the type None leaves both lines out when this is compiled.
    """
    plain, placed, weighted, seen = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    for index in range(words.size):
        word = np.uint64(words[index])
        if target is not None:
            target[index] = words[index]
            seen |= (word & mask) + carry
        plain += word
        placed += word * np.uint64(np.uint32(index))
        weighted += word * np.uint64(weights[index])
    return plain, placed, weighted, seen


@_compiled
def _accumulate(
    words: NDArray[np.uint32],
    target: NDArray[np.uint32] | None,
    start: int,
    weights: NDArray[np.uint32],
    lanes: NDArray[np.uint64],
    mask: int,
    carry: int,
) -> int:
    """Add a tensor's words from word `start` on to `lanes`, and copy them to `target` unless that is None.

    Returns, combined by "or", what a `Sieve` of `mask` and `carry` made of the copied words. The sums of a block need
    no multiplication of 64 bits.
    """
    position = 0
    seen = np.uint64(0)
    while position < words.size:
        block, first = (start + position) // _BLOCK, (start + position) % _BLOCK
        here = slice(position, position + min(_BLOCK - first, words.size - position))
        own = None if target is None else target[here]
        plain, placed, weighted, found = _sums(words[here], weights[first:], own, np.uint64(mask), np.uint64(carry))
        lanes[0] += plain
        lanes[1] += placed + plain * np.uint64(start + position)
        lanes[2] += weighted * (_mix(np.uint64(_BLOCK + block)) | np.uint64(1))
        seen |= found
        position = here.stop
    return int(seen)
