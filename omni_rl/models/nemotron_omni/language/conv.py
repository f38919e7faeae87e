"""Computes the depthwise causal convolution over packed sequences; nothing leaks from one sequence into the next.

Shapes: T packed tokens, D channels, K taps.
"""

import torch

from omni_rl.models.precision import at_least_float32


def causal_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, position: torch.Tensor
) -> torch.Tensor:
    """Return y[t] = bias + sum over k of weight[K-1-k] · x[t-k], terms before the sequence's start left out.

    `x` is [T, D], `weight` [D, K], `bias` [D], `position` int64 [T] in its sequence; the result is float32 [T, D].
    """
    result: torch.Tensor = _CausalConv.apply(x, weight, bias, position)  # type: ignore[no-untyped-call]
    return result


class _CausalConv(torch.autograd.Function):
    """The convolution, which saves its input alone; autograd would store a shifted float32 copy of it for every tap."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        position: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, position)
        ctx.bias_dtype = None if bias is None else bias.dtype  # type: ignore[attr-defined]
        taps = at_least_float32(weight).T.contiguous()
        last = len(taps) - 1
        values = at_least_float32(x)
        y = values * taps[last]
        if bias is not None:
            y += bias
        starts = (position == 0).nonzero().squeeze(1)
        reach = values.clone() if values is x else values
        for shift in range(1, min(last, len(x) - 1) + 1):
            # Zero the tokens from which `shift` steps lead into another sequence; further shifts cross there too.
            reach[starts[starts >= shift] - shift] = 0
            y[shift:].addcmul_(reach[:-shift], taps[last - shift])
        return y

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, None]:
        x, weight, position = ctx.saved_tensors  # type: ignore[attr-defined]
        taps = at_least_float32(weight).T.contiguous()
        last = len(taps) - 1
        values = at_least_float32(x)
        grad_x = grad * taps[last]
        grad_taps = torch.zeros_like(taps)
        grad_taps[last] = (grad * values).sum(0)
        bias_dtype = ctx.bias_dtype  # type: ignore[attr-defined]
        grad_bias = None if bias_dtype is None else grad.sum(0).to(bias_dtype)
        inside = grad.clone()
        for shift in range(1, min(last, len(x) - 1) + 1):
            inside[position == shift - 1] = 0
            grad_x[:-shift].addcmul_(inside[shift:], taps[last - shift])
            grad_taps[last - shift] = (inside[shift:] * values[:-shift]).sum(0)
        return grad_x.to(x.dtype), grad_taps.T.to(weight.dtype), grad_bias, None
