"""Computes differentiable log-probabilities of given tokens, with the logits of one chunk of positions at a time.

Shapes: N positions, H hidden, V vocabulary.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from omni_rl.models.precision import at_least_float32


def token_logprobs(
    hidden: torch.Tensor,
    head: nn.Module,
    targets: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    chunk: int = 1024,
) -> torch.Tensor:
    """Return log softmax(`head`(`hidden` [N, H]) / temperature) at `targets` int64 [N]: float32 [N].

    The logits have the head's dtype, as the engine's do; from there on everything is float32, the division by
    `temperature` (a number, or float32 [N]) included. Backward computes each chunk's logits once more.
    """
    scale = None
    if isinstance(temperature, torch.Tensor) or temperature != 1:
        scale = torch.as_tensor(temperature, dtype=torch.float32, device=hidden.device).expand(len(targets))
    result: torch.Tensor
    if _is_one_matrix(head, hidden):
        result = _TokenLogprobs.apply(hidden, head.weight, targets, scale, chunk)  # type: ignore[no-untyped-call]
        return result
    parts = []
    for start in range(0, max(len(targets), 1), chunk):  # without targets too: parameters get gradients of zero
        rows = slice(start, start + chunk)
        arguments = head, hidden[rows], targets[rows], None if scale is None else scale[rows]
        if torch.is_grad_enabled():
            parts.append(checkpoint(_by_call, *arguments, use_reentrant=False))
        else:
            parts.append(_by_call(*arguments))
    return torch.cat(parts)


def _is_one_matrix(head: nn.Module, hidden: torch.Tensor) -> bool:
    """Return whether calling `head` is a product with its weight and nothing else, which `_TokenLogprobs` then fuses.

    An adapter, a bias, a hook (FSDP's among them), a parametrisation or autocast make it something else.
    """
    return (
        type(head) is nn.Linear
        and head._parameters["bias"] is None
        and head.weight.dtype == hidden.dtype
        and not (head._forward_pre_hooks or head._forward_hooks or head._backward_pre_hooks or head._backward_hooks)
        and not torch.is_autocast_enabled(hidden.device.type)
        and not isinstance(head.weight, DTensor)
    )


def _by_call(
    head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, temperature: torch.Tensor | None
) -> torch.Tensor:
    logits = at_least_float32(head(hidden))
    if temperature is not None:
        logits = logits / temperature.unsqueeze(1)
    return logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)


class _TokenLogprobs(torch.autograd.Function):
    """Computes the logprobs of a head that is one matrix, chunk by chunk, with a backward of its own.

    The chunk that backward begins with is stored, which costs no more memory than computing it would, and the head's
    gradient is summed over the chunks in float32.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        temperature: torch.Tensor | None,
        chunk: int,
    ) -> torch.Tensor:
        ctx.chunk = chunk  # type: ignore[attr-defined]
        result = at_least_float32(hidden.new_empty(len(targets)))
        last = None
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            last = None  # freed before the next is computed
            last = _log_softmax(hidden[rows], weight, None if temperature is None else temperature[rows])
            result[rows] = last.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
        ctx.save_for_backward(hidden, weight, targets, temperature, last)  # type: ignore[arg-type]
        return result

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        hidden, weight, targets, temperature, last = ctx.saved_tensors  # type: ignore[attr-defined]
        chunk = ctx.chunk  # type: ignore[attr-defined]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = at_least_float32(torch.zeros_like(weight))
        for start in reversed(range(0, len(targets), chunk)):
            rows = slice(start, start + chunk)
            logprobs = (
                _log_softmax(hidden[rows], weight, None if temperature is None else temperature[rows])
                if last is None
                else last
            )
            scaled = (grad[rows] if temperature is None else grad[rows] / temperature[rows]).unsqueeze(1)
            # A stored chunk must not be overwritten: backward may run again over the same graph.
            grad_logits = (logprobs.exp_() if last is None else logprobs.exp()).mul_(-scaled)
            last = logprobs = None
            grad_logits.scatter_add_(1, targets[rows].unsqueeze(1), scaled)
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[rows] = grad_logits @ weight
            grad_weight += grad_logits.T @ hidden[rows]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _log_softmax(hidden: torch.Tensor, weight: torch.Tensor, temperature: torch.Tensor | None) -> torch.Tensor:
    logits = at_least_float32(F.linear(hidden, weight))
    if temperature is not None:
        logits = logits.div_(temperature.unsqueeze(1))
    return logits.log_softmax(-1)
