"""Runs a forward by the engine's operators with the backward of the reference."""

from collections.abc import Callable
from typing import Any

import torch

Compute = Callable[..., torch.Tensor]


def engine_forward(engine: Compute, reference: Compute, *tensors: torch.Tensor) -> torch.Tensor:
    """Return `engine(*tensors)`, whose gradients are those of `reference(*tensors)`.

    Both compute the same up to rounding. Backward runs `reference` once more on the same inputs, so that nothing of the
    engine's insides has to be known, and only the inputs are stored.
    """
    result: torch.Tensor = _EngineForward.apply(engine, reference, *tensors)  # type: ignore[no-untyped-call]
    return result


class _EngineForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, engine: Compute, reference: Compute, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        ctx.reference = reference
        return engine(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs = [
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        with torch.enable_grad():
            result = ctx.reference(*inputs)
        found = iter(torch.autograd.grad(result, [tensor for tensor in inputs if tensor.requires_grad], grad))
        return None, None, *(next(found) if tensor.requires_grad else None for tensor in inputs)
