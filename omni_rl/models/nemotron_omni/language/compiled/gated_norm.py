"""Computes the RMS norm of y · silu(gate) in groups of channels, the gate being the first columns of a wider matrix.

Shapes: T packed tokens, W columns, I channels in G groups.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_rl.models.nemotron_omni.language.compiled.numbers import rounded, sigmoid
from omni_rl.models.nemotron_omni.language.compiled.threads import compiled

Array = NDArray[Any]


@compiled
def _gate(y: Array, gate: Array, bfloat16: bool | None, gated: Array) -> None:
    for i in range(len(gated)):
        gated[i] = rounded(y[i], bfloat16) * gate[i] * sigmoid(gate[i])


@compiled
def _inverse_rms(row: Array, eps: float) -> Any:
    total = row.dtype.type(0)
    for i in range(len(row)):
        total += row[i] * row[i]
    return row.dtype.type(1) / np.sqrt(total / row.dtype.type(len(row)) + row.dtype.type(eps))


@compiled
def gated_norm_forward(
    parts: Array, y: Array, gate: Array, weight: Array, groups: int, eps: float, bfloat16: bool | None, out: Array
) -> None:
    """Write the norm of `y` [T, I], `gate` [T, W] and `weight` [I] to `out` [T, I]. `parts` are ranges of rows."""
    size = y.shape[1] // groups
    gated = np.empty(size, y.dtype)
    for part in range(len(parts)):
        for t in range(parts[part, 0], parts[part, 1]):
            for group in range(groups):
                first, last = group * size, (group + 1) * size
                _gate(y[t, first:last], gate[t, first:last], bfloat16, gated)
                scale = _inverse_rms(gated, eps)
                own, to = weight[first:last], out[t, first:last]
                for i in range(len(gated)):
                    to[i] = rounded(own[i] * rounded(gated[i] * scale, bfloat16), bfloat16)


@compiled
def gated_norm_backward(
    parts: Array,
    y: Array,
    gate: Array,
    weight: Array,
    groups: int,
    eps: float,
    bfloat16: bool | None,
    grad: Array,
    grad_y: Array,
    grad_gate: Array,
    grad_weight: Array,
) -> None:
    """Compute the gradients of `gated_norm_forward`; `grad_gate` is [T, W]; each part adds to its own row of
    `grad_weight`."""
    size = y.shape[1] // groups
    gated, sloped = np.empty(size, y.dtype), np.empty(size, y.dtype)
    one = y.dtype.type(1)
    for part in range(len(parts)):
        for t in range(parts[part, 0], parts[part, 1]):
            for group in range(groups):
                first, last = group * size, (group + 1) * size
                row, gates, above = y[t, first:last], gate[t, first:last], grad[t, first:last]
                _gate(row, gates, bfloat16, gated)
                scale = _inverse_rms(gated, eps)
                own, own_grad = weight[first:last], grad_weight[parts[part, 2], first:last]
                along = y.dtype.type(0)
                for i in range(len(gated)):
                    normed = gated[i] * scale
                    own_grad[i] += above[i] * normed
                    along += above[i] * own[i] * normed
                along = along / y.dtype.type(size)
                for i in range(len(gated)):
                    sloped[i] = (above[i] * own[i] - gated[i] * scale * along) * scale
                to_y, to_gate = grad_y[t, first:last], grad_gate[t, first:last]
                for i in range(len(sloped)):
                    share = sigmoid(gates[i])
                    to_y[i] = sloped[i] * gates[i] * share
                    to_gate[i] = sloped[i] * row[i] * share * (one + gates[i] * (one - share))
