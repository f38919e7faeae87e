"""Digests that prove that two processes used the same tensor."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def tensor_digest(tensor: "torch.Tensor") -> str:
    """blake3 (hex) over dtype, shape and bytes of a tensor, whatever its strides or device."""
    import torch

    plain = tensor.detach().contiguous().cpu()
    hasher = blake3(f"{str(plain.dtype).removeprefix('torch.')}{list(plain.shape)}".encode())
    if plain.numel():
        hasher.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def tensors_digest(tensors: "Mapping[str, torch.Tensor]") -> str:
    """One digest for a set of named tensors, independent of their order."""
    hasher = blake3()
    for name in sorted(tensors):
        hasher.update(f"{name}={tensor_digest(tensors[name])};".encode())
    return hasher.hexdigest()


def sequence_digest(ids: NDArray[np.int64], places: Iterable[NDArray[np.int64]]) -> str:
    """One digest of a sequence as a model runs it: its ids, and for each media item the positions of its features."""
    hasher = blake3(np.ascontiguousarray(ids, np.int64).view(np.uint8).data)
    for positions in places:
        hasher.update(f";{len(positions)}:".encode())
        hasher.update(np.ascontiguousarray(positions, np.int64).view(np.uint8).data)
    return hasher.hexdigest()
