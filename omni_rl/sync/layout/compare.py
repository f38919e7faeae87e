"""Compares tensors at the speed of memory."""

import ctypes

import torch

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int


def bits(values: torch.Tensor) -> torch.Tensor:
    """Return the same bytes as integers: NaN equals itself, and 0 is not -0."""
    return values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors of one shape and dtype hold the same bytes.

    Uses C's memcmp where it can read both: several times faster than torch.equal, which compares element by element.
    """
    if _plain(one) and _plain(other):
        return bool(_memcmp(one.data_ptr(), other.data_ptr(), one.nbytes) == 0)
    return torch.equal(bits(one), bits(other))


def differing(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the positions (row-major, ascending) at which two tensors of one shape and dtype differ in a bit."""
    return (bits(one) != bits(other)).flatten().nonzero().flatten()


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu and tensor.is_contiguous()
