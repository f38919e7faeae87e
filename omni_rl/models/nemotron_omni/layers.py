"""The two layers that every part of the model shares."""

import torch
from torch import nn
from torch.nn import functional as F


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """float32 for smaller dtypes; float64 stays, so that a double model is a reference for every part."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class SquaredReLU(nn.Module):
    """relu(x)²."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x).square()


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, in float32 with the weight; result in the input's dtype."""

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = at_least_float32(hidden_states)
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (normed * at_least_float32(self.weight)).to(hidden_states.dtype)
