"""The relu-squared experts against a sum written out token by token."""

import pytest
import torch

from omni_rl.models.nemotron_omni.engine.experts import relu2_experts


def by_hand(
    hidden: torch.Tensor, up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """In float64, one token and one expert at a time."""
    rows = []
    for token, x in enumerate(hidden.double()):
        total = torch.zeros_like(x)
        for weight, expert in zip(weights[token].double(), chosen[token], strict=True):
            inner = (up[expert].double() @ x).clamp(min=0) ** 2
            total += weight * (down[expert].double() @ inner)
        rows.append(total)
    return torch.stack(rows)


def inputs(dtype: torch.dtype, tokens: int = 9) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, 16, generator=generator).to(dtype)
    up = (torch.randn(5, 12, 16, generator=generator) / 4).to(dtype)
    down = (torch.randn(5, 16, 12, generator=generator) / 4).to(dtype)
    weights = torch.rand(tokens, 2, generator=generator)
    chosen = torch.rand(tokens, 5, generator=generator).topk(2, dim=1).indices.int()
    return hidden, up, down, weights, chosen


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_weighted_sum_of_the_chosen_experts(dtype: torch.dtype, tolerance: float) -> None:
    arguments = inputs(dtype)
    result = relu2_experts(*arguments)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), by_hand(*arguments), rtol=tolerance, atol=tolerance)


def test_a_token_does_not_depend_on_which_others_are_there() -> None:
    hidden, up, down, weights, chosen = inputs(torch.float32)
    together = relu2_experts(hidden, up, down, weights, chosen)
    alone = relu2_experts(hidden[4:5], up, down, weights[4:5], chosen[4:5])
    torch.testing.assert_close(together[4:5], alone, rtol=1e-6, atol=1e-6)


def test_an_expert_nobody_chose_is_not_run() -> None:
    hidden, up, down, weights, chosen = inputs(torch.float32)
    chosen = chosen.clamp(max=1)
    up[2:], down[2:] = float("nan"), float("nan")
    assert relu2_experts(hidden, up, down, weights, chosen).isfinite().all()
