"""The depthwise causal convolution over packed sequences on a CPU, compiled: a row is read while the cache has it.

Shapes: T packed tokens, D channels, K taps.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.models.nemotron_omni.language.threads import array, compiled, on_threads
from omni_rl.models.nemotron_omni.layers import at_least_float32

Array = NDArray[Any]


def compiled_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, position: torch.Tensor
) -> torch.Tensor:
    """`conv.causal_conv`, for tensors on the CPU."""
    shift = torch.zeros_like(weight[:, 0]) if bias is None else bias
    taps = at_least_float32(weight).T.flip(0).contiguous()
    result: torch.Tensor = _Conv.apply(  # type: ignore[no-untyped-call]
        at_least_float32(x).contiguous(), taps, at_least_float32(shift).contiguous(), position
    )
    return result


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
        x, taps, bias, position = tensors
        ctx.save_for_backward(x, taps, position)
        y = torch.empty_like(x)
        on_threads(_forward, _parts(x.shape[1]), *(array(t) for t in (x, taps, bias, position, y)))
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, taps, position = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_taps = torch.empty_like(x), torch.zeros_like(taps)
        arrays = (array(t) for t in (x, taps, position, grad, grad_x, grad_taps))
        on_threads(_backward, _parts(x.shape[1]), *arrays)
        return grad_x, grad_taps, grad.sum(0), None


def _parts(channels: int) -> Array:
    """Ranges of channels, one for a thread: no two write the same element."""
    bounds = np.linspace(0, channels, min(torch.get_num_threads(), channels) + 1).astype(np.int64)
    return np.stack([bounds[:-1], bounds[1:]], axis=1)


# Rows are cut before the inner loops: an index that starts elsewhere than at 0 may be negative, and numba's handling of
# that keeps LLVM from vectorising.


@compiled
def _forward(parts: Array, x: Array, taps: Array, bias: Array, position: Array, y: Array) -> None:
    for part in range(len(parts)):
        first, last = parts[part, 0], parts[part, 1]
        shift_by = bias[first:last]
        for t in range(len(x)):
            out = y[t, first:last]
            row, tap = x[t, first:last], taps[0, first:last]
            for i in range(len(out)):
                out[i] = shift_by[i] + tap[i] * row[i]
            for shift in range(1, min(position[t] + 1, len(taps))):
                row, tap = x[t - shift, first:last], taps[shift, first:last]
                for i in range(len(out)):
                    out[i] += tap[i] * row[i]


@compiled
def _backward(
    parts: Array, x: Array, taps: Array, position: Array, grad: Array, grad_x: Array, grad_taps: Array
) -> None:
    for part in range(len(parts)):
        first, last = parts[part, 0], parts[part, 1]
        for t in range(len(x)):
            arrived = grad[t, first:last]
            row, tap = x[t, first:last], taps[0, first:last]
            grad_row, grad_tap = grad_x[t, first:last], grad_taps[0, first:last]
            for i in range(len(arrived)):
                grad_row[i] = tap[i] * arrived[i]
                grad_tap[i] += arrived[i] * row[i]
            for shift in range(1, min(position[t] + 1, len(taps))):
                row, tap = x[t - shift, first:last], taps[shift, first:last]
                grad_row, grad_tap = grad_x[t - shift, first:last], grad_taps[shift, first:last]
                for i in range(len(arrived)):
                    grad_row[i] += tap[i] * arrived[i]
                    grad_tap[i] += arrived[i] * row[i]
