"""Digests that prove that two processes used the same tensor."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def tensor_digest(tensor: "torch.Tensor") -> str:
    """Return blake3 (hex) over dtype, shape and bytes of a tensor, whatever its strides or device."""
    import torch

    plain = tensor.detach().contiguous().cpu()
    parts = [plain.reshape(-1).view(torch.uint8).numpy().data] if plain.numel() else []
    return pieces_digest(plain.dtype, plain.shape, parts)


def pieces_digest(dtype: "torch.dtype", shape: Iterable[int], parts: Iterable[memoryview]) -> str:
    """Return the `tensor_digest` of a tensor whose bytes come in several parts, in row-major order."""
    hasher = blake3(f"{str(dtype).removeprefix('torch.')}{list(shape)}".encode())
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()


def tensors_digest(tensors: "Mapping[str, torch.Tensor]") -> str:
    """Return one digest for a set of named tensors, independent of their order."""
    return combined_digest({name: tensor_digest(tensor) for name, tensor in tensors.items()})


def combined_digest(digests: Mapping[str, str]) -> str:
    """Return the `tensors_digest` of tensors whose `tensor_digest` are given by name."""
    hasher = blake3()
    for name in sorted(digests):
        hasher.update(f"{name}={digests[name]};".encode())
    return hasher.hexdigest()


def sequence_digest(ids: NDArray[np.int64], places: Iterable[NDArray[np.int64]]) -> str:
    """Return one digest of a sequence as a model runs it: its ids, and for each media item the positions of its
    features."""
    hasher = blake3(np.ascontiguousarray(ids, np.int64).view(np.uint8).data)
    for positions in places:
        hasher.update(f";{len(positions)}:".encode())
        hasher.update(np.ascontiguousarray(positions, np.int64).view(np.uint8).data)
    return hasher.hexdigest()
