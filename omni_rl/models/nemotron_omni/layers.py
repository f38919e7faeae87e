"""Holds the layers that every part of the model shares."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from omni_rl.models.precision import at_least_float32


def as_autocast(*matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the factors of a product, in autocast's dtype inside of one, for products that autocast itself passes
    over."""
    device = matrices[0].device.type
    if not torch.is_autocast_enabled(device):
        return matrices
    return tuple(matrix.to(torch.get_autocast_dtype(device)) for matrix in matrices)


def exactly(move: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return `move`, what `nn.Module.to` and its like apply to a tensor, without a change of dtype that would round
    float32 values."""

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        moved = move(tensor)
        exact = moved.dtype == at_least_float32(moved).dtype or not moved.is_floating_point()
        return moved if exact else tensor.to(moved.device, torch.float32)

    return keep


class SquaredReLU(nn.Module):
    """Computes relu(x)²."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return squared_relu(x)


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """Return relu(x)²."""
    result: torch.Tensor = _SquaredReLU.apply(x)  # type: ignore[no-untyped-call]
    return result


def rms_normalise(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / sqrt(mean of x² over the last dimension + eps), in x's dtype."""
    result: torch.Tensor = _RMSNormalise.apply(x, eps)  # type: ignore[no-untyped-call]
    return result


class _SquaredReLU(torch.autograd.Function):
    """Computes relu(x)² with two passes over the gradient; autograd would take four and store one tensor more."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (positive,) = ctx.saved_tensors
        scaled: torch.Tensor = (grad * positive).mul_(2)
        return scaled


class _RMSNormalise(torch.autograd.Function):
    """Normalises and stores its result and one number a row; autograd would store the input, its square and several
    products."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        normed = x * scale
        ctx.save_for_backward(normed, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        normed, scale = ctx.saved_tensors
        along = (grad * normed).mean(-1, keepdim=True)
        return torch.addcmul(grad, normed, along, value=-1).mul_(scale), None


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, in float32 with the weight; result in the input's dtype."""

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = at_least_float32(hidden_states)
        return (rms_normalise(x, self.eps) * at_least_float32(self.weight)).to(hidden_states.dtype)
