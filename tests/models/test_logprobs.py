"""Chunked logprobs against plain log_softmax."""

import pytest
import torch

from omni_rl.models.logprobs import token_logprobs


def _inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(50, 16, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(50, (23,), generator=generator)


def _head(weight: torch.Tensor) -> torch.nn.Linear:
    """A linear layer whose weight is this very tensor, of a graph or not."""
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    del head.weight
    head.weight = weight
    return head


def _plain(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    logits = (hidden @ weight.T).float() / temperature[:, None]
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("chunk", [1, 5, 23, 1024])
def test_values_and_gradients_equal_log_softmax_with_a_temperature_a_token(chunk: int) -> None:
    hidden, weight, targets = _inputs(torch.float32)
    temperature = torch.linspace(0.3, 2.0, 23)
    upstream = torch.randn(23)
    scored = token_logprobs(hidden, _head(weight), targets, temperature, chunk)
    expected = _plain(hidden, weight, targets, temperature)
    torch.testing.assert_close(scored, expected, rtol=1e-6, atol=1e-6)
    mine = torch.autograd.grad(scored, (hidden, weight), upstream)
    theirs = torch.autograd.grad(expected, (hidden, weight), upstream)
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def test_a_bfloat16_head_rounds_its_logits_as_the_engine_does_and_no_further() -> None:
    hidden, weight, targets = _inputs(torch.bfloat16)
    scored = token_logprobs(hidden, _head(weight), targets, 0.7, 4)
    assert scored.dtype == torch.float32
    torch.testing.assert_close(scored, _plain(hidden, weight, targets, torch.full((23,), 0.7)), rtol=0, atol=1e-5)


def test_nothing_to_score_still_gives_zero_gradients() -> None:
    hidden, weight, targets = _inputs(torch.float32)
    torch.autograd.backward(token_logprobs(hidden[:0], _head(weight), targets[:0]).sum())
    assert weight.grad is not None
    assert not weight.grad.any()


def test_gradients_equal_finite_differences() -> None:
    hidden, weight, targets = _inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, _head(w), targets[:5], 0.9, 2), (hidden[:5], weight))


class _Biased(torch.nn.Module):
    """What an adapter or a head of somebody's own is: a callable with parameters."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.base = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
        self.base.weight.data.copy_(weight)
        self.bias = torch.nn.Parameter(torch.randn(len(weight), dtype=weight.dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        biased: torch.Tensor = self.base(hidden) + self.bias
        return biased


@pytest.mark.parametrize("chunk", [5, 1024])
def test_a_head_that_is_more_than_a_matrix_is_called_and_learns(chunk: int) -> None:
    hidden, weight, targets = _inputs(torch.float32)
    head = _Biased(weight.detach())
    temperature = torch.linspace(0.3, 2.0, 23)
    scored = token_logprobs(hidden, head, targets, temperature, chunk)
    expected = (head(hidden) / temperature[:, None]).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(scored, expected, rtol=1e-6, atol=1e-6)
    leaves = (hidden, head.base.weight, head.bias)
    upstream = torch.randn(23)
    for own, other in zip(
        torch.autograd.grad(scored, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    torch.autograd.backward(token_logprobs(hidden[:0], head, targets[:0]).sum())
    assert head.bias.grad is not None
    assert not head.bias.grad.any()


def test_hooks_of_a_plain_head_run() -> None:
    hidden, weight, targets = _inputs(torch.float32)
    head = _head(weight.detach().requires_grad_())
    seen: list[int] = []
    head.register_forward_hook(lambda module, given, logits: seen.append(len(logits)))
    token_logprobs(hidden, head, targets, chunk=10)
    assert sum(seen) == 23
