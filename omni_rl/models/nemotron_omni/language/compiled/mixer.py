"""Computes what lies between the two projections of a Mamba2 mixer, on a CPU, without splitting or joining matrices.

Shapes: T packed tokens, H heads of P channels, I = H·P; G groups of N states; D = I + 2·G·N convolved channels; W = I +
D + H columns: gate, x, B, C, dt.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from omni_rl.models.nemotron_omni.language.compiled.conv import conv_backward, conv_forward
from omni_rl.models.nemotron_omni.language.compiled.gated_norm import gated_norm_backward, gated_norm_forward
from omni_rl.models.nemotron_omni.language.compiled.scan import scan_backward, scan_forward, scan_units
from omni_rl.models.nemotron_omni.language.compiled.threads import array, on_threads, ranges
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mixing import MixerSizes, MixerWeights
from omni_rl.models.precision import at_least_float32


def compiled_mix(
    projected: torch.Tensor, weights: MixerWeights, layout: PackedLayout, sizes: MixerSizes
) -> torch.Tensor:
    """Compute `mixing.MambaKernels.mix` for tensors on the CPU."""
    assert sum(layout.lengths) == len(projected), "compiled code does not check its indices"
    bias = torch.zeros_like(weights.taps[:, 0]) if weights.bias is None else weights.bias
    exact = (projected, weights.taps.T.flip(0), bias, weights.dt_bias, weights.a, weights.d, weights.norm)
    arguments = [at_least_float32(tensor).contiguous() for tensor in exact]
    bfloat16 = True if projected.dtype == torch.bfloat16 else None
    mixed: torch.Tensor = _Mix.apply(*arguments, layout, sizes, bfloat16)  # type: ignore[no-untyped-call]
    return mixed.to(projected.dtype)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        *tensors, layout, sizes, bfloat16 = args
        projected, taps, bias, dt_bias, a, d, weight = tensors
        convolved = projected.new_empty(len(projected), sizes.convolved)
        columns = array(projected), sizes.inner, array(taps), array(bias), array(layout.position)
        on_threads(conv_forward, ranges(sizes.convolved), *columns, bfloat16, array(convolved))
        step = F.softplus(projected[:, -sizes.heads :] + dt_bias).clamp_(*sizes.dt_limit)
        decay = torch.exp(step * a)
        y = projected.new_empty(len(projected), sizes.inner)
        scanned = (array(tensor) for tensor in (convolved, step, decay, d))
        on_threads(scan_forward, scan_units(layout.lengths, sizes.groups), *scanned, sizes.states, array(y))
        out = torch.empty_like(y)
        gated = (array(tensor) for tensor in (y, projected, weight))
        on_threads(gated_norm_forward, ranges(len(y)), *gated, sizes.groups, sizes.eps, bfloat16, array(out))
        ctx.save_for_backward(*tensors, convolved, step, y)
        ctx.rest = layout, sizes, bfloat16
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        projected, taps, bias, dt_bias, a, d, weight, convolved, step, y = ctx.saved_tensors
        layout, sizes, bfloat16 = ctx.rest
        grad = grad.contiguous()
        grad_projected = torch.empty_like(projected)
        grad_projected[:, sizes.inner : -sizes.heads] = 0

        rows = ranges(len(y))
        grad_y, grad_weights = torch.empty_like(y), weight.new_zeros(len(rows), len(weight))
        gated = (array(tensor) for tensor in (y, projected, weight))
        results = (array(tensor) for tensor in (grad, grad_y, grad_projected, grad_weights))
        on_threads(gated_norm_backward, rows, *gated, sizes.groups, sizes.eps, bfloat16, *results)

        decay = torch.exp(step * a)
        grad_convolved = torch.empty_like(convolved)
        grad_step, grad_exponent, grad_skip = (torch.empty_like(step) for _ in range(3))
        scanned = (array(tensor) for tensor in (convolved, step, decay, d))
        results = (array(t) for t in (y, grad_y, grad_convolved, grad_step, grad_exponent, grad_skip))
        on_threads(scan_backward, scan_units(layout.lengths, sizes.groups), *scanned, sizes.states, *results)

        raw = projected[:, -sizes.heads :] + dt_bias
        low, high = sizes.dt_limit
        inside = (step > low) & (step < high) if low > 0 or high < np.inf else None
        grad_a = (grad_exponent * step).sum(0)
        grad_raw = grad_step.addcmul_(grad_exponent, a).mul_(raw.sigmoid_())
        if inside is not None:
            grad_raw = grad_raw.mul_(inside)
        grad_projected[:, -sizes.heads :] = grad_raw

        grad_taps, grad_bias = torch.zeros_like(taps), torch.zeros_like(bias)
        columns = array(projected), sizes.inner, array(taps), array(bias), array(layout.position)
        results = (array(tensor) for tensor in (grad_convolved, grad_projected, grad_taps, grad_bias))
        on_threads(conv_backward, ranges(sizes.convolved), *columns, *results)
        gradients = grad_taps, grad_bias, grad_raw.sum(0), grad_a, grad_skip.sum(0), grad_weights.sum(0)
        return grad_projected, *gradients, None, None, None
