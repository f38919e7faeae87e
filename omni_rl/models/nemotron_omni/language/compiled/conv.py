"""Computes silu of the depthwise causal convolution over packed sequences, for some columns of a wider matrix.

Shapes: T packed tokens, W columns, D of them convolved, K taps.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_rl.models.nemotron_omni.language.compiled.numbers import rounded, sigmoid
from omni_rl.models.nemotron_omni.language.compiled.threads import compiled

Array = NDArray[Any]

# Rows are cut before the inner loops: an index that starts elsewhere than at 0 may be negative, and numba's handling of
# that keeps LLVM from vectorising.


@compiled
def _convolve(row: Array, taps: Array, bias: Array, earlier: Array, first: int, out: Array) -> None:
    """Set out [d] = bias + taps[0] · row + taps[k] · the rows before; `earlier` [k, W] ends with the nearest."""
    tap = taps[0]
    for i in range(len(out)):
        out[i] = bias[i] + tap[i] * row[i]
    for shift in range(1, len(earlier) + 1):
        before, tap = earlier[len(earlier) - shift, first : first + len(out)], taps[shift]
        for i in range(len(out)):
            out[i] += tap[i] * before[i]


@compiled
def conv_forward(
    parts: Array, x: Array, column: int, taps: Array, bias: Array, position: Array, bfloat16: bool | None, y: Array
) -> None:
    """Convolve columns of `x` [T, W] from `column` on and write to `y` [T, D].

    `parts` are ranges of the D channels; `taps` [K, D] go from the token itself back; `bias` is [D]; `position` [T] is
    each token's position in its sequence.
    """
    for part in range(len(parts)):
        first, last = parts[part, 0], parts[part, 1]
        own_taps, own_bias = taps[:, first:last].copy(), bias[first:last]
        for t in range(len(x)):
            out = y[t, first:last]
            reach = min(position[t], len(taps) - 1)
            _convolve(x[t, column + first : column + last], own_taps, own_bias, x[t - reach : t], column + first, out)
            for i in range(len(out)):
                value = rounded(out[i], bfloat16)
                out[i] = rounded(value * sigmoid(value), bfloat16)


@compiled
def conv_backward(
    parts: Array,
    x: Array,
    column: int,
    taps: Array,
    bias: Array,
    position: Array,
    grad: Array,
    grad_x: Array,
    grad_taps: Array,
    grad_bias: Array,
) -> None:
    """Compute the gradients of `conv_forward`; `grad_x` [T, W], `grad_taps` and `grad_bias` start at 0."""
    for part in range(len(parts)):
        first, last = parts[part, 0], parts[part, 1]
        own_taps, own_bias = taps[:, first:last].copy(), bias[first:last]
        value, arrived = np.empty(last - first, x.dtype), np.empty(last - first, x.dtype)
        own_grad_bias = grad_bias[first:last]
        for t in range(len(x)):
            reach = min(position[t], len(taps) - 1)
            _convolve(x[t, column + first : column + last], own_taps, own_bias, x[t - reach : t], column + first, value)
            above = grad[t, first:last]
            for i in range(len(value)):
                share = sigmoid(value[i])
                arrived[i] = above[i] * share * (x.dtype.type(1) + value[i] * (x.dtype.type(1) - share))
            for i in range(len(arrived)):
                own_grad_bias[i] += arrived[i]
            for shift in range(reach + 1):
                row, tap = x[t - shift, column + first : column + last], own_taps[shift]
                grad_row, grad_tap = grad_x[t - shift, column + first : column + last], grad_taps[shift, first:last]
                for i in range(len(arrived)):
                    grad_row[i] += tap[i] * arrived[i]
                    grad_tap[i] += arrived[i] * row[i]
