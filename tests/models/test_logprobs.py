"""Chunked logprobs against plain log_softmax."""

import pytest
import torch

from omni_rl.models.nemotron_omni.logprobs import token_logprobs


def _inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(50, 16, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(50, (23,), generator=generator)


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
    scored = token_logprobs(hidden, weight, targets, temperature, chunk)
    expected = _plain(hidden, weight, targets, temperature)
    torch.testing.assert_close(scored, expected, rtol=1e-6, atol=1e-6)
    mine = torch.autograd.grad(scored, (hidden, weight), upstream)
    theirs = torch.autograd.grad(expected, (hidden, weight), upstream)
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def test_a_bfloat16_head_rounds_its_logits_as_the_engine_does_and_no_further() -> None:
    hidden, weight, targets = _inputs(torch.bfloat16)
    scored = token_logprobs(hidden, weight, targets, 0.7, 4)
    assert scored.dtype == torch.float32
    torch.testing.assert_close(scored, _plain(hidden, weight, targets, torch.full((23,), 0.7)), rtol=0, atol=1e-5)


def test_nothing_to_score_still_gives_zero_gradients() -> None:
    hidden, weight, targets = _inputs(torch.float32)
    torch.autograd.backward(token_logprobs(hidden[:0], weight, targets[:0]).sum())
    assert weight.grad is not None
    assert not weight.grad.any()


def test_gradients_equal_finite_differences() -> None:
    hidden, weight, targets = _inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, targets[:5], 0.9, 2), (hidden[:5], weight))
