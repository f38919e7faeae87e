"""Fingerprints torch tensors where they are: with numba on the CPU, with torch operators on a device."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.agent.fingerprint import (
    MODULUS,
    MULTIPLIER,
    SALT,
    SHIFT,
    WIDE_MULTIPLIER,
    WIDE_SALT,
    WIDE_SHIFT,
    Fingerprint,
    hash_sum,
    total,
)

try:
    from omni_rl.agent import kernels
except ImportError:  # a trainer's environment need not have numba; numpy takes several times as long
    kernels = None  # type: ignore[assignment]

PIECE = 1 << 22
"""The number of elements that are processed at once where temporaries are needed: 32 MiB for each 64-bit one."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def name_of(dtype: torch.dtype) -> str:
    """Return the dtype's name without its module, as fingerprints carry it: bfloat16."""
    return str(dtype).removeprefix("torch.")


def fingerprint(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> Fingerprint:
    """Return the fingerprint of a dense tensor of any shape and strides, in its own dtype or cast to `dtype`.

    Nothing of the tensor's size is allocated: casts, copies of strided memory and a device's temporaries are made in
    pieces of `PIECE` elements.
    """
    values = tensor.detach()
    wanted = dtype or values.dtype
    if values.dtype == wanted and values.is_contiguous() and values.device.type == "cpu":
        return _on_cpu(values.reshape(-1))
    empty = Fingerprint(name_of(wanted), 0, 0)
    return total((empty, *(_of_piece(piece.to(wanted)) for piece in _pieces(values))))


def _pieces(values: torch.Tensor) -> list[torch.Tensor]:
    """Return views that cover a tensor, each of at most `PIECE` elements, so that a strided one is copied in pieces."""
    if values.numel() <= PIECE:
        return [values] if values.numel() else []
    if values.is_contiguous():
        return list(torch.split(values.reshape(-1), PIECE))
    # A row may itself be too large.
    rows = max(1, PIECE * len(values) // values.numel())
    return [piece for some in torch.split(values, rows) for piece in ([some] if len(some) > 1 else _pieces(some[0]))]


def _of_piece(piece: torch.Tensor) -> Fingerprint:
    flat = piece.contiguous().reshape(-1)
    return _on_cpu(flat) if flat.device.type == "cpu" else _on_device(flat)


def _on_cpu(flat: torch.Tensor) -> Fingerprint:
    size = flat.element_size()
    # A complex or a packed sub-byte dtype has no word of its own: its bytes stand for it.
    words: NDArray[Any] = flat.view(_WORDS.get(size, torch.uint8)).numpy()
    words = words.view(_UNSIGNED.get(size, np.uint8))
    name = name_of(flat.dtype)
    if kernels is None or size not in (1, 2, 4):
        return Fingerprint(name, flat.numel(), hash_sum(words), *_moments(flat))
    run = {"float32": kernels.float32, "bfloat16": kernels.bfloat16}.get(name, kernels.bits_only)
    hashes, squares = run(words)
    # Squares of small values underflow in float32, those of large ones overflow, and NaN stays: then look closer.
    if run is kernels.bits_only or not np.isfinite(squares) or (squares == 0.0 and hashes):
        return Fingerprint(name, flat.numel(), int(hashes), *_moments(flat))
    return Fingerprint(name, flat.numel(), int(hashes), float(squares))


def _on_device(flat: torch.Tensor) -> Fingerprint:
    size = flat.element_size()
    bits = flat.view(_WORDS.get(size, torch.uint8)).to(torch.int64)
    if size == 8:
        mixed = bits * _signed(WIDE_MULTIPLIER)
        # A shift of int64 copies the sign down: the mask takes the copies away.
        mixed ^= (mixed >> WIDE_SHIFT) & ((1 << 64 - WIDE_SHIFT) - 1)
        hashed = mixed * (bits ^ _signed(WIDE_SALT))
    else:
        bits &= (1 << 8 * size) - 1
        mixed = (bits * MULTIPLIER) & 0xFFFFFFFF
        mixed ^= mixed >> SHIFT
        hashed = mixed * (bits ^ SALT)
    return Fingerprint(name_of(flat.dtype), flat.numel(), int(hashed.sum()) % MODULUS, *_moments(flat))


def _moments(flat: torch.Tensor) -> tuple[float, int]:
    """Return the sum of squares of the finite elements, in float64, and how many are not finite."""
    if not flat.is_floating_point() or flat.element_size() == 1:
        return 0.0, 0
    squares, nonfinite = 0.0, 0
    for piece in torch.split(flat, PIECE):
        finite = torch.isfinite(piece)
        # MPS has no float64; squares are for sizes alone.
        wide = torch.where(finite, piece, 0).to(torch.float32 if flat.device.type == "mps" else torch.float64)
        squares += float((wide * wide).sum())
        nonfinite += piece.numel() - int(finite.sum())
    return squares, nonfinite


def _signed(value: int) -> int:
    return value - MODULUS if value >= MODULUS // 2 else value
