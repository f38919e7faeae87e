"""A step is the gradient of the mean over the whole batch, clipped, however the batch was packed."""

from collections.abc import Sequence

import pytest
import torch

from omni_rl.rollout.types import Rollout
from omni_rl.train.packing import distribute, plan_packs, sequence_length
from omni_rl.train.settings import TrainSettings
from omni_rl.train.step import build_optimizer, train_step
from omni_rl.train.types import StepStats

from .bigram import Bigram
from .conftest import MakeRollout

ADVANTAGES = [1.0, -0.5, 2.0, 0.25]


def _step(
    rollouts: Sequence[Rollout], advantages: Sequence[float], budget: int, settings: TrainSettings
) -> tuple[Bigram, StepStats]:
    policy = Bigram()
    plan = plan_packs([sequence_length(rollout) for rollout in rollouts], budget, 1)
    packs, shares = distribute(plan, rollouts)[0], distribute(plan, advantages)[0]
    tokens = sum(len(rollout.ids) for rollout in rollouts)
    optimizer = build_optimizer(policy, settings)
    return policy, train_step(policy, optimizer, packs, shares, tokens=tokens, settings=settings)


def _expected(rollouts: Sequence[Rollout], advantages: Sequence[float]) -> tuple[Bigram, torch.Tensor]:
    """The mean over all tokens, one rollout at a time, by plain autograd."""
    policy = Bigram()
    terms = []
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        ids = torch.cat([torch.tensor(rollout.prompt.ids), torch.tensor(rollout.ids)])
        logprobs = (policy.table[ids[:-1]] @ policy.head).log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        terms.append(-advantage * logprobs[len(rollout.prompt.ids) - 1 :])
    loss = torch.cat(terms).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return policy, loss.detach()


@pytest.fixture
def rollouts(make_rollout: MakeRollout) -> list[Rollout]:
    return [make_rollout(seed, answer=length) for seed, length in enumerate([3, 9, 1, 5])]


@pytest.mark.parametrize("budget", [15, 24, 1000])
def test_loss_and_gradient_do_not_depend_on_the_packs(rollouts: list[Rollout], budget: int) -> None:
    settings = TrainSettings(world_size=1, max_grad_norm=1e9)
    policy, stats = _step(rollouts, ADVANTAGES, budget, settings)
    reference, loss = _expected(rollouts, ADVANTAGES)
    assert stats.tokens == 18
    assert stats.loss == pytest.approx(loss.item(), abs=1e-6)
    gradients = [p.grad for p in reference.parameters() if p.grad is not None]
    assert stats.grad_norm == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item(), rel=1e-5)
    # AdamW as in its paper, first step: bias-corrected moments are g and g^2.
    for parameter, initial, gradient in zip(policy.parameters(), Bigram().parameters(), gradients, strict=True):
        step = settings.learning_rate * gradient / (gradient.abs() + settings.epsilon)
        assert torch.allclose(parameter, initial - step, atol=1e-6)


def test_the_gradient_is_clipped_to_the_global_norm(rollouts: list[Rollout]) -> None:
    # A large epsilon makes AdamW's first step proportional to the gradient: what was clipped becomes visible.
    settings = TrainSettings(world_size=1, max_grad_norm=1e-3, epsilon=1e3, learning_rate=1e3)
    policy, stats = _step(rollouts, ADVANTAGES, 1000, settings)
    moved = [(p - q).flatten() for p, q in zip(policy.parameters(), Bigram().parameters(), strict=True)]
    assert stats.grad_norm > 0.1
    assert torch.cat(moved).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_gradient_that_is_not_finite_changes_nothing(rollouts: list[Rollout]) -> None:
    policy, stats = _step(rollouts, [1.0, float("inf"), 0.0, 0.0], 1000, TrainSettings(world_size=1))
    assert not torch.isfinite(torch.tensor(stats.grad_norm))
    for parameter, initial in zip(policy.parameters(), Bigram().parameters(), strict=True):
        assert torch.equal(parameter, initial)


def test_a_pack_without_rollouts_adds_nothing(rollouts: list[Rollout]) -> None:
    settings = TrainSettings(world_size=1, max_grad_norm=1e9)
    tokens = sum(len(rollout.ids) for rollout in rollouts)
    results = []
    for packs, advantages in [([rollouts], [ADVANTAGES]), ([rollouts, []], [ADVANTAGES, []])]:
        policy = Bigram()
        optimizer = build_optimizer(policy, settings)
        results.append((policy, train_step(policy, optimizer, packs, advantages, tokens=tokens, settings=settings)))
    (without, stats), (with_empty, stats_with_empty) = results
    assert stats == stats_with_empty
    assert torch.equal(without.table, with_empty.table)
    assert torch.equal(without.head, with_empty.head)
