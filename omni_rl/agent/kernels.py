"""Hashes and squares weights on the CPU in one pass, while they are in a register; imports numba."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from omni_rl import numba_beside_vllm
from omni_rl.agent.fingerprint import MULTIPLIER, SALT, SHIFT

# A process that fingerprints before it starts an engine could not start one otherwise.
numba_beside_vllm.hide()

BLOCK = 1024
"""How many elements' squares are added in float32, lane by lane, before they go into a float64."""
Pass = Callable[[NDArray[Any]], tuple[int, float]]
F = TypeVar("F", bound=Callable[..., object])
_MULTIPLIER = np.uint32(MULTIPLIER)
_SALT = np.uint32(SALT)
_SHIFT = np.uint32(SHIFT)


def _compiled(function: F, **options: object) -> F:
    compiled: F = numba.njit(nogil=True, cache=True, **options)(function)
    return compiled


def _as_float(context: Any, bits: Any) -> Any:
    """Compile to the float32 that has these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


_float32 = intrinsic(_as_float)


def _pass(shift: int, squared: bool) -> Pass:
    """Return a pass over unsigned integers [N] of up to 32 bits, which are float32 once moved up by `shift` bits."""
    up = np.uint32(shift)

    def block(words: NDArray[Any]) -> tuple[np.uint64, np.float32]:
        hashes, squares = np.uint64(0), np.float32(0)
        for index in range(words.size):
            bits = np.uint32(words[index])
            mixed = np.uint32(bits * _MULTIPLIER)
            mixed ^= mixed >> _SHIFT
            hashes += np.uint64(mixed) * np.uint64(bits ^ _SALT)
            if squared:
                value = _float32(np.uint32(bits << up))
                squares += value * value
        return hashes, squares

    # Only the sums may be reordered: NaN and infinity keep their meaning, and a NaN in the result says to look closer.
    of_block = _compiled(block, fastmath={"reassoc", "contract", "nsz"})

    def whole(words: NDArray[Any]) -> tuple[Any, float]:
        hashes, squares = np.uint64(0), 0.0
        for start in range(0, words.size, BLOCK):
            some, more = of_block(words[start : start + BLOCK])
            hashes += some
            squares += float(more)
        return hashes, squares

    return _compiled(whole)


float32 = _pass(0, True)
bfloat16 = _pass(16, True)
bits_only = _pass(0, False)
