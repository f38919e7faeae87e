"""The Mamba2 scan on a CPU: the recurrence itself, compiled, so that nothing of the size of a chunk squared is built.

h[t] = exp(dt[t]·A)·h[t-1] + dt[t]·x[t] ⊗ B[t],  y[t] = C[t]·h[t] + D·x[t],  h = 0 before each sequence's first token
(Dao and Gu 2024, "Transformers are SSMs", equation 2 with a scalar A for each head.)

A head's state stays in the first-level cache while a sequence passes. Backward walks the same states from the end; it
keeps one in `_STRIDE` and computes those between once more.

Shapes: T tokens, S sequences, H heads of P channels, G groups of B and C, N states.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.models.nemotron_omni.language.threads import array, compiled, on_threads
from omni_rl.models.nemotron_omni.layers import at_least_float32

Array = NDArray[Any]

_STRIDE = 16
"""Tokens between two states that backward keeps: their states fill a second-level cache together."""


def recurrent_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor,
    lengths: tuple[int, ...],
) -> torch.Tensor:
    """The scan, in float32 (float64 if the inputs are): [T, H, P]. CPU tensors only.

    `x` [T, H, P], `dt` [T, H], `a` and `d` [H], `b` and `c` [T, G, N]; `lengths` of the S sequences.
    """
    assert sum(lengths) == len(x), "compiled code does not check its indices"
    values = (at_least_float32(tensor).contiguous() for tensor in (x, dt, a, b, c, d))
    result: torch.Tensor = _Scan.apply(*values, lengths)  # type: ignore[no-untyped-call]
    return result


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        *tensors, lengths = args
        x, dt, a, b, c, d = tensors
        ctx.save_for_backward(*tensors)
        ctx.lengths = lengths
        y = torch.empty_like(x)
        decay = torch.exp(dt * a)
        on_threads(_forward, _units(lengths, b.shape[1]), *(array(t) for t in (x, dt, decay, b, c, d, y)))
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, dt, a, b, c, d = ctx.saved_tensors
        lengths = ctx.lengths
        decay = torch.exp(dt * a)
        grad_x = torch.empty_like(x)
        grad_dt, grad_exponent, grad_skip = (torch.empty_like(dt) for _ in range(3))
        grad_b, grad_c = torch.empty_like(b), torch.empty_like(c)
        inputs = (x, dt, decay, b, c, d, grad.contiguous())
        arrays = (*inputs, grad_x, grad_dt, grad_exponent, grad_skip, grad_b, grad_c)
        on_threads(_backward, _units(lengths, b.shape[1]), *(array(t) for t in arrays))
        grad_a, grad_d = (grad_exponent * dt).sum(0), grad_skip.sum(0)
        return grad_x, grad_dt.addcmul_(grad_exponent, a), grad_a, grad_b, grad_c, grad_d, None


def _units(lengths: tuple[int, ...], groups: int) -> Array:
    """Start, end and group of everything that can be scanned by itself, longest first."""
    starts = np.cumsum([0, *lengths])
    return np.array(
        [
            (starts[index], starts[index + 1], group)
            for index in sorted(range(len(lengths)), key=lambda index: -lengths[index])
            for group in range(groups)
        ]
    )


# Rows are cut before the inner loops: an index that starts elsewhere than at 0 may be negative, and numba's handling of
# that keeps LLVM from vectorising.


@compiled
def _spread(row: Array, scale: Array, first: int, wide: Array) -> None:
    """wide [W] = row [H, P] · scale [H] of the heads from `first` on."""
    channels = row.shape[1]
    for head in range(len(wide) // channels):
        part, source, factor = wide[head * channels : (head + 1) * channels], row[first + head], scale[first + head]
        for p in range(len(part)):
            part[p] = source[p] * factor


@compiled
def _advance(state: Array, decay: Array, key: Array, value: Array) -> None:
    """state [N, W] = decay [W] · state + key [N] ⊗ value [W]."""
    for n in range(len(key)):
        scale = key[n]
        for i in range(len(value)):
            state[n, i] = decay[i] * state[n, i] + scale * value[i]


@compiled
def _copy_advanced(state: Array, decay: Array, key: Array, value: Array, after: Array) -> None:
    """`_advance` into another array; in one loop for both LLVM would find that the arrays may overlap."""
    for n in range(len(key)):
        scale = key[n]
        for i in range(len(value)):
            after[n, i] = decay[i] * state[n, i] + scale * value[i]


@compiled
def _copy(state: Array, to: Array) -> None:
    """Numba's own `to[:] = state` takes five times as long."""
    for n in range(state.shape[0]):
        for i in range(state.shape[1]):
            to[n, i] = state[n, i]


@compiled
def _forward(units: Array, x: Array, dt: Array, decay: Array, b: Array, c: Array, d: Array, y: Array) -> None:
    share, channels, states = x.shape[1] // b.shape[1], x.shape[2], b.shape[2]
    width = share * channels
    state = np.empty((states, width), x.dtype)
    keep, value, out = np.empty(width, x.dtype), np.empty(width, x.dtype), np.empty(width, x.dtype)
    ones = np.ones((x.shape[1], channels), x.dtype)
    for unit in range(len(units)):
        first_head = units[unit, 2] * share
        keys, queries = b[:, units[unit, 2]], c[:, units[unit, 2]]
        state[:] = 0
        for t in range(units[unit, 0], units[unit, 1]):
            _spread(ones, decay[t], first_head, keep)
            _spread(x[t], dt[t], first_head, value)
            _spread(x[t], d, first_head, out)
            for n in range(states):
                key, query = keys[t, n], queries[t, n]
                for i in range(width):
                    moved = keep[i] * state[n, i] + key * value[i]
                    state[n, i] = moved
                    out[i] += query * moved
            for head in range(share):
                part, to = out[head * channels : (head + 1) * channels], y[t, first_head + head]
                for p in range(len(part)):
                    to[p] = part[p]


@compiled
def _backward(
    units: Array,
    x: Array,
    dt: Array,
    decay: Array,
    b: Array,
    c: Array,
    d: Array,
    grad_y: Array,
    grad_x: Array,
    grad_dt: Array,
    grad_exponent: Array,
    grad_skip: Array,
    grad_b: Array,
    grad_c: Array,
) -> None:
    """`grad_dt`: of dt as a factor of x alone; `grad_exponent`: of dt·A; `grad_skip`: a token's share of D's."""
    share, channels, states = x.shape[1] // b.shape[1], x.shape[2], b.shape[2]
    width = share * channels
    longest = 0
    for unit in range(len(units)):
        longest = max(longest, units[unit, 1] - units[unit, 0])
    kept = np.empty(((longest + _STRIDE - 1) // _STRIDE, states, width), x.dtype)
    between = np.empty((_STRIDE + 1, states, width), x.dtype)
    grad_state = np.empty((states, width), x.dtype)
    keep, value, grad_value = np.empty(width, x.dtype), np.empty(width, x.dtype), np.empty(width, x.dtype)
    out, moved = np.empty(width, x.dtype), np.empty(width, x.dtype)
    ones, plain = np.ones((x.shape[1], channels), x.dtype), np.ones(x.shape[1], x.dtype)
    for unit in range(len(units)):
        start, end = units[unit, 0], units[unit, 1]
        first_head = units[unit, 2] * share
        keys, queries = b[:, units[unit, 2]], c[:, units[unit, 2]]
        grad_keys, grad_queries = grad_b[:, units[unit, 2]], grad_c[:, units[unit, 2]]
        between[0] = 0
        for t in range(start, end):
            if (t - start) % _STRIDE == 0:
                _copy(between[0], kept[(t - start) // _STRIDE])
            _spread(ones, decay[t], first_head, keep)
            _spread(x[t], dt[t], first_head, value)
            _advance(between[0], keep, keys[t], value)
        grad_state[:] = 0
        for block in range((end - start - 1) // _STRIDE, -1, -1):
            first = start + block * _STRIDE
            last = min(first + _STRIDE, end)
            _copy(kept[block], between[0])
            for t in range(first, last):
                _spread(ones, decay[t], first_head, keep)
                _spread(x[t], dt[t], first_head, value)
                _copy_advanced(between[t - first], keep, keys[t], value, between[t - first + 1])
            # Between t and t - 1 the state's gradient passes the decay of t; the last token has nothing after it.
            keep[:] = 0
            if last < end:
                _spread(ones, decay[last], first_head, keep)
            for t in range(last - 1, first - 1, -1):
                before, after = between[t - first], between[t - first + 1]
                _spread(x[t], dt[t], first_head, value)
                _spread(grad_y[t], plain, first_head, out)
                grad_value[:] = 0
                moved[:] = 0
                for n in range(states):
                    key, query = keys[t, n], queries[t, n]
                    grad_key, grad_query = x.dtype.type(0), x.dtype.type(0)
                    # Two loops: LLVM vectorises none that has more than eight pairs of arrays to tell apart.
                    for i in range(width):
                        grad = keep[i] * grad_state[n, i] + query * out[i]
                        grad_query += out[i] * after[n, i]
                        grad_key += grad * value[i]
                        grad_state[n, i] = grad
                    for i in range(width):
                        grad_value[i] += key * grad_state[n, i]
                        moved[i] += grad_state[n, i] * before[n, i]
                    grad_keys[t, n] = grad_key
                    grad_queries[t, n] = grad_query
                _spread(ones, decay[t], first_head, keep)
                for own in range(share):
                    head, columns = first_head + own, slice(own * channels, (own + 1) * channels)
                    of_value, of_state, of_out = grad_value[columns], moved[columns], out[columns]
                    row, to = x[t, head], grad_x[t, head]
                    of_step, of_exponent, of_skip = x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
                    for p in range(len(row)):
                        of_step += of_value[p] * row[p]
                        of_exponent += of_state[p]
                        of_skip += of_out[p] * row[p]
                        to[p] = of_value[p] * dt[t, head] + d[head] * of_out[p]
                    grad_dt[t, head] = of_step
                    grad_exponent[t, head] = of_exponent * decay[t, head]
                    grad_skip[t, head] = of_skip
