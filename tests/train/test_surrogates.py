"""Surrogate losses against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from omni_rl.train.shares import shares
from omni_rl.train.surrogates import clipped_surrogate, clipped_value_loss, reference_kl


def test_clip_higher_stops_gradients_only_where_the_ratio_has_gone_far_enough() -> None:
    ratios = torch.tensor([1.5, 1.25, 0.5, 0.5, 1.5])
    advantages = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0])
    logprobs = ratios.log().requires_grad_()
    losses = clipped_surrogate(logprobs, torch.zeros(5), advantages, low=0.2, high=0.28)
    assert losses.tolist() == pytest.approx([-1.28, -1.25, 0.8, -0.5, 1.5])
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, -1.25, 0.0, -0.5, 1.5])


def test_reference_kl() -> None:
    result = reference_kl(torch.tensor([0.0, -1.0]), torch.tensor([math.log(2), -1.0]))
    assert result.tolist() == pytest.approx([1 - math.log(2), 0.0])


def test_value_loss_takes_the_worse_of_clipped_and_free() -> None:
    old, returns = torch.zeros(2), torch.tensor([1.0, -1.0])
    result = clipped_value_loss(torch.tensor([0.5, 0.5]), old, returns, clip=0.2)
    assert result.tolist() == pytest.approx([0.5 * 0.8**2, 0.5 * 1.5**2])


def test_aggregation_and_over_long_answers() -> None:
    losses, lengths, kept = np.array([1.0, 4.0, 4.0, 4.0, 100.0]), [1, 3, 1], [True, True, False]
    assert losses @ np.concatenate(shares(lengths, kept, "token")) == pytest.approx(13 / 4)
    assert losses @ np.concatenate(shares(lengths, kept, "sequence")) == pytest.approx(2.5)
    assert losses @ np.concatenate(shares(lengths, [False] * 3, "token")) == 0.0
