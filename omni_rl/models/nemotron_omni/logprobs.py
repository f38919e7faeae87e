"""Log-probabilities of given tokens that differentiate, with the logits of one chunk of positions at a time.

Shapes: N positions, H hidden, V vocabulary.
"""

import torch
from torch.nn import functional as F

from omni_rl.models.nemotron_omni.layers import at_least_float32


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    chunk: int = 1024,
) -> torch.Tensor:
    """log softmax(`hidden` [N, H] · `weight` [V, H]ᵀ / temperature) at `targets` int64 [N]: float32 [N].

    The logits have the inputs' dtype, as the engine's do; from there on it is float32, the division by `temperature`
    (a number, or float32 [N]) included. Backward computes each chunk's logits once more.
    """
    scale = torch.as_tensor(temperature, dtype=torch.float32, device=hidden.device).expand(len(targets))
    result: torch.Tensor = _TokenLogprobs.apply(hidden, weight, targets, scale, chunk)  # type: ignore[no-untyped-call]
    return result


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        temperature: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, targets, temperature)
        ctx.chunk = chunk  # type: ignore[attr-defined]
        result = at_least_float32(hidden.new_empty(len(targets)))
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = _tempered(hidden[rows], weight, temperature[rows])
            chosen = logits.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
            result[rows] = chosen - logits.logsumexp(-1)
        return result

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        hidden, weight, targets, temperature = ctx.saved_tensors  # type: ignore[attr-defined]
        chunk = ctx.chunk  # type: ignore[attr-defined]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = at_least_float32(torch.zeros_like(weight))
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            scaled = (grad[rows] / temperature[rows]).unsqueeze(1)
            grad_logits = _tempered(hidden[rows], weight, temperature[rows]).softmax(-1).mul_(-scaled)
            grad_logits.scatter_add_(1, targets[rows].unsqueeze(1), scaled)
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[rows] = grad_logits @ weight
            grad_weight += grad_logits.T @ hidden[rows]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _tempered(hidden: torch.Tensor, weight: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return at_least_float32(F.linear(hidden, weight)).div_(temperature.unsqueeze(1))
