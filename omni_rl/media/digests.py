"""Digests that prove that two processes used the same tensor."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from blake3 import blake3

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
