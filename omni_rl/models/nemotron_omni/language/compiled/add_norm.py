"""Computes the residual sum and its RMS norm in one pass over a row. Shapes: T packed tokens, I channels."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.models.nemotron_omni.language.compiled.numbers import rounded
from omni_rl.models.nemotron_omni.language.compiled.threads import array, compiled, on_threads, ranges
from omni_rl.models.precision import at_least_float32

Array = NDArray[Any]


def compiled_add_norm(
    mixed: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `norm.AddRMSNorm` for tensors on the CPU."""
    bfloat16 = True if mixed.dtype == torch.bfloat16 else None
    addend = mixed.new_empty(0, mixed.shape[1]) if residual is None else residual
    values = (at_least_float32(tensor).contiguous() for tensor in (mixed, addend, weight))
    normed, total = _AddNorm.apply(*values, eps, bfloat16)  # type: ignore[no-untyped-call]
    return normed.to(mixed.dtype), total.to(mixed.dtype)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        mixed, residual, weight, eps, bfloat16 = args
        normed, total = torch.empty_like(mixed), torch.empty_like(mixed)
        scale = mixed.new_empty(len(mixed))
        arrays = (array(tensor) for tensor in (mixed, residual, weight))
        results = (array(tensor) for tensor in (normed, total, scale))
        on_threads(_forward, ranges(len(mixed)), *arrays, eps, bfloat16, *results)
        ctx.save_for_backward(total, scale, weight)
        ctx.added = len(residual) > 0
        return normed, total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total, scale, weight = ctx.saved_tensors
        rows = ranges(len(total))
        grad, grad_weight = torch.empty_like(total), weight.new_zeros(len(rows), len(weight))
        tensors = [total, scale, weight, *(arrived.contiguous() for arrived in grads)]
        on_threads(_backward, rows, *map(array, tensors), array(grad), array(grad_weight))
        return grad, grad if ctx.added else None, grad_weight.sum(0), None, None


@compiled
def _forward(
    parts: Array,
    mixed: Array,
    residual: Array,
    weight: Array,
    eps: float,
    bfloat16: bool | None,
    normed: Array,
    total: Array,
    scale: Array,
) -> None:
    """Normalise the sum before it is rounded, and weight it after. `parts` are ranges of rows."""
    kind = mixed.dtype.type
    summed = np.empty(mixed.shape[1], mixed.dtype)
    for part in range(len(parts)):
        for t in range(parts[part, 0], parts[part, 1]):
            row, out, kept = mixed[t], normed[t], total[t]
            if len(residual):
                addend = residual[t]
                for i in range(len(summed)):
                    summed[i] = row[i] + addend[i]
            else:
                for i in range(len(summed)):
                    summed[i] = row[i]
            squares = kind(0)
            for i in range(len(summed)):
                squares += summed[i] * summed[i]
                kept[i] = rounded(summed[i], bfloat16)
            factor = kind(1) / np.sqrt(squares / kind(len(summed)) + kind(eps))
            scale[t] = factor
            for i in range(len(summed)):
                out[i] = rounded(rounded(summed[i] * factor, bfloat16) * weight[i], bfloat16)


@compiled
def _backward(
    parts: Array,
    total: Array,
    scale: Array,
    weight: Array,
    grad_normed: Array,
    grad_total: Array,
    grad: Array,
    grad_weight: Array,
) -> None:
    """Compute the gradients; each part adds to its own row of `grad_weight`."""
    kind = total.dtype.type
    for part in range(len(parts)):
        to_weight = grad_weight[parts[part, 2]]
        for t in range(parts[part, 0], parts[part, 1]):
            row, above, beside, out, factor = total[t], grad_normed[t], grad_total[t], grad[t], scale[t]
            along = kind(0)
            for i in range(len(row)):
                share = above[i] * row[i] * factor
                to_weight[i] += share
                along += share * weight[i]
            along = along * factor / kind(len(row))
            for i in range(len(row)):
                out[i] = above[i] * weight[i] * factor - row[i] * factor * along + beside[i]
