"""Chooses the dtype to compute in where the model's own would be too coarse."""

import torch


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Return float32 for smaller dtypes; float64 stays, so that a double model is a reference for every part."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
