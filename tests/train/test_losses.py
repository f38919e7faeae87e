"""Losses and baselines against numbers worked out by hand."""

import pytest
import torch

from omni_rl.train.losses import batch_advantages, group_advantages, policy_gradient_sum


def test_policy_gradient_and_its_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    loss = policy_gradient_sum(logprobs, torch.tensor([0.5, -1.0, 2.0]))
    assert loss.item() == pytest.approx(0.5 * 1.0 - 1.0 * 2.0 + 2.0 * 0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.5, 1.0, -2.0]


def test_bfloat16_logprobs_are_summed_in_float32() -> None:
    loss = policy_gradient_sum(torch.full((1000,), -1.0, dtype=torch.bfloat16), torch.ones(1000))
    assert loss.dtype == torch.float32
    assert loss.item() == 1000.0


def test_batch_baseline() -> None:
    assert batch_advantages([1.0, 0.0, 0.0, 1.0]).tolist() == [0.5, -0.5, -0.5, 0.5]


def test_group_baseline_compares_answers_to_the_same_prompt_only() -> None:
    advantages = group_advantages([1.0, 10.0, 0.0, 10.0, 2.0], ["a", "b", "a", "b", "a"])
    assert advantages.tolist() == [0.0, 0.0, -1.0, 0.0, 1.0]
