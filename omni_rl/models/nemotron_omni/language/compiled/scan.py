"""Computes the Mamba2 scan as the recurrence itself, so that nothing of the size of a chunk squared is built.

h[t] = exp(dt[t]·A)·h[t-1] + dt[t]·x[t] ⊗ B[t],  y[t] = C[t]·h[t] + D·x[t],  h = 0 before each sequence's first token
(Dao and Gu 2024, "Transformers are SSMs", equation 2 with a scalar A for each head.)

A head's state stays in the first-level cache while a sequence passes. Backward walks the states once more for C's
gradient, and the states' gradient g from the end for the others. The decay's would need both at the same token:

    e[t] = <g[t], exp(dt[t]·A)·h[t-1]> = e[t+1] + <grad y[t], y[t] - D·x[t]> - <g[t], dt[t]·x[t] ⊗ B[t]>

follows from both recurrences and needs neither; every `_STRIDE` tokens it is computed anew from a stored state, so that
rounding does not grow with the sequence.

Shapes: T tokens, H heads of P channels, G groups of B and C, N states; `mixed` [T, H·P + 2·G·N] holds x, B and C.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_rl.models.nemotron_omni.language.compiled.threads import compiled

Array = NDArray[Any]

_STRIDE = 16


@lru_cache(maxsize=64)
def scan_units(lengths: tuple[int, ...], groups: int) -> Array:
    """Return start, end and group of everything that can be scanned by itself, longest first."""
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
def _repeat(scale: Array, wide: Array) -> None:
    """Set wide [h·P] to each of scale [h], P times."""
    channels = len(wide) // len(scale)
    for head in range(len(scale)):
        part, factor = wide[head * channels : (head + 1) * channels], scale[head]
        for p in range(len(part)):
            part[p] = factor


@compiled
def _scaled(row: Array, scale: Array, wide: Array) -> None:
    """Set wide [h·P] to row [h·P] · scale [h]."""
    channels = len(wide) // len(scale)
    for head in range(len(scale)):
        columns = slice(head * channels, (head + 1) * channels)
        part, source, factor = wide[columns], row[columns], scale[head]
        for p in range(len(part)):
            part[p] = source[p] * factor


@compiled
def scan_forward(units: Array, mixed: Array, dt: Array, decay: Array, d: Array, states: int, y: Array) -> None:
    """Scan and write to `y` [T, H·P]. `dt` and `decay` = exp(dt·A) are [T, H]; `d` is [H]; `states` is N."""
    groups = (mixed.shape[1] - y.shape[1]) // (2 * states)
    width, share = y.shape[1] // groups, dt.shape[1] // groups
    state = np.empty((states, width), mixed.dtype)
    keep, value = np.empty(width, mixed.dtype), np.empty(width, mixed.dtype)
    for unit in range(len(units)):
        group = units[unit, 2]
        heads, columns = slice(group * share, (group + 1) * share), slice(group * width, (group + 1) * width)
        first_key = y.shape[1] + group * states
        first_query = first_key + groups * states
        state[:] = 0
        for t in range(units[unit, 0], units[unit, 1]):
            row, out = mixed[t, columns], y[t, columns]
            keys, queries = mixed[t, first_key : first_key + states], mixed[t, first_query : first_query + states]
            _repeat(decay[t, heads], keep)
            _scaled(row, dt[t, heads], value)
            _scaled(row, d[heads], out)
            for n in range(states):
                key, query, held = keys[n], queries[n], state[n]
                for i in range(width):
                    moved = keep[i] * held[i] + key * value[i]
                    held[i] = moved
                    out[i] += query * moved


@compiled
def scan_backward(
    units: Array,
    mixed: Array,
    dt: Array,
    decay: Array,
    d: Array,
    states: int,
    y: Array,
    grad_y: Array,
    grad_mixed: Array,
    grad_dt: Array,
    grad_exponent: Array,
    grad_skip: Array,
) -> None:
    """Compute the gradients. `grad_dt` [T, H] is that of dt as a factor of x alone, `grad_exponent` that of dt·A, and
    `grad_skip` a token's share of D's gradient."""
    groups = (mixed.shape[1] - y.shape[1]) // (2 * states)
    width, share = y.shape[1] // groups, dt.shape[1] // groups
    channels = width // share
    longest = 0
    for unit in range(len(units)):
        longest = max(longest, units[unit, 1] - units[unit, 0])
    kept = np.empty(((longest + _STRIDE - 1) // _STRIDE, states, width), mixed.dtype)
    state = np.empty((states, width), mixed.dtype)
    keep, value, grad_value = np.empty(width, mixed.dtype), np.empty(width, mixed.dtype), np.empty(width, mixed.dtype)
    exponent = np.empty(share, np.float64)
    for unit in range(len(units)):
        start, end, group = units[unit, 0], units[unit, 1], units[unit, 2]
        heads, columns = slice(group * share, (group + 1) * share), slice(group * width, (group + 1) * width)
        first_key = y.shape[1] + group * states
        first_query = first_key + groups * states
        state[:] = 0
        for t in range(start, end):
            if (t - start) % _STRIDE == 0:
                _copy(state, kept[(t - start) // _STRIDE])
            out = grad_y[t, columns]
            keys, grad_queries = (
                mixed[t, first_key : first_key + states],
                grad_mixed[t, first_query : first_query + states],
            )
            _repeat(decay[t, heads], keep)
            _scaled(mixed[t, columns], dt[t, heads], value)
            for n in range(states):
                key, held, total = keys[n], state[n], mixed.dtype.type(0)
                for i in range(width):
                    moved = keep[i] * held[i] + key * value[i]
                    held[i] = moved
                    total += out[i] * moved
                grad_queries[n] = total
        # From here on `state` is the states' gradient; the last token has nothing after it.
        state[:] = 0
        keep[:] = 0
        exponent[:] = 0
        for t in range(end - 1, start - 1, -1):
            row, out, grad_row = mixed[t, columns], grad_y[t, columns], grad_mixed[t, columns]
            keys, queries = mixed[t, first_key : first_key + states], mixed[t, first_query : first_query + states]
            grad_keys = grad_mixed[t, first_key : first_key + states]
            _scaled(row, dt[t, heads], value)
            grad_value[:] = 0
            for n in range(states):
                key, query, held, total = keys[n], queries[n], state[n], mixed.dtype.type(0)
                for i in range(width):
                    grad = keep[i] * held[i] + query * out[i]
                    held[i] = grad
                    total += grad * value[i]
                    grad_value[i] += key * grad
                grad_keys[n] = total
            _repeat(decay[t, heads], keep)
            of_y = y[t, columns]
            for own in range(share):
                head, first, last = group * share + own, own * channels, (own + 1) * channels
                factor, skip = dt[t, head], d[head]
                of_step, of_skip, of_out = mixed.dtype.type(0), mixed.dtype.type(0), mixed.dtype.type(0)
                part_row, part_out, part_y = row[first:last], out[first:last], of_y[first:last]
                part_value, part_grad = grad_value[first:last], grad_row[first:last]
                for p in range(channels):
                    of_step += part_value[p] * part_row[p]
                    of_skip += part_out[p] * part_row[p]
                    of_out += part_out[p] * part_y[p]
                for p in range(channels):
                    part_grad[p] = part_value[p] * factor + skip * part_out[p]
                grad_dt[t, head] = of_step
                grad_skip[t, head] = of_skip
                exponent[own] += (np.float64(of_out) - np.float64(skip) * of_skip) - np.float64(factor) * of_step
                if (t - start) % _STRIDE == 0:
                    exponent[own] = decay[t, head] * _product(state, kept[(t - start) // _STRIDE], first, last)
                grad_exponent[t, head] = exponent[own]


@compiled
def _copy(state: Array, to: Array) -> None:
    """Copy a state by a loop: Numba's own `to[:] = state` takes five times as long."""
    for n in range(state.shape[0]):
        source, target = state[n], to[n]
        for i in range(len(target)):
            target[i] = source[i]


@compiled
def _product(one: Array, two: Array, first: int, last: int) -> Any:
    """Return the sum of one · two over all rows and the columns from `first` to `last`."""
    total = one.dtype.type(0)
    for n in range(one.shape[0]):
        left, right = one[n, first:last], two[n, first:last]
        for i in range(len(left)):
            total += left[i] * right[i]
    return total
