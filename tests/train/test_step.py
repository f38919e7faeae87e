"""A step is the gradient of the mean over the whole batch, clipped, however the batch was packed."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from omni_rl.rollout.types import Rollout
from omni_rl.train.plan import distribute, plan_packs, sequence_length
from omni_rl.train.settings import PLAIN, Objective, TrainSettings
from omni_rl.train.shares import shares
from omni_rl.train.step import build_optimizer, train_step
from omni_rl.train.targets import Targets, targets_of
from omni_rl.train.types import StepStats
from omni_rl.train.value import ValueHead

from .bigram import Bigram
from .conftest import MakeRollout

ADVANTAGES = [1.0, -0.5, 2.0, 0.25]


def _step(
    rollouts: Sequence[Rollout],
    given: Sequence[float | Targets],
    budget: int,
    settings: TrainSettings,
    objective: Objective = PLAIN,
    head: ValueHead | None = None,
) -> tuple[Bigram, StepStats]:
    policy = Bigram()
    plan = plan_packs([sequence_length(rollout) for rollout in rollouts], budget, 1)
    packs, targets = distribute(plan, rollouts)[0], distribute(plan, targets_of(rollouts, given))[0]
    optimizer = build_optimizer(policy, settings)
    stats = train_step(policy, optimizer, packs, targets, objective=objective, settings=settings, head=head)
    return policy, stats


def _logprobs(policy: Bigram, rollout: Rollout) -> torch.Tensor:
    ids = torch.cat([torch.tensor(rollout.prompt.ids), torch.tensor(rollout.ids)])
    logprobs = (policy.table[ids[:-1]] @ policy.head).log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return logprobs[len(rollout.prompt.ids) - 1 :]


def _expected(rollouts: Sequence[Rollout], advantages: Sequence[float]) -> Bigram:
    """With the gradient of the mean over all tokens, one rollout at a time, by plain autograd."""
    policy = Bigram()
    terms = [-a * _logprobs(policy, rollout) for rollout, a in zip(rollouts, advantages, strict=True)]
    torch.cat(terms).mean().backward()  # type: ignore[no-untyped-call]
    return policy


@pytest.fixture
def rollouts(make_rollout: MakeRollout) -> list[Rollout]:
    return [make_rollout(seed, answer=length) for seed, length in enumerate([3, 9, 1, 5])]


@pytest.mark.parametrize("budget", [15, 24, 1000])
def test_loss_and_gradient_do_not_depend_on_the_packs(rollouts: list[Rollout], budget: int) -> None:
    settings = TrainSettings(world_size=1, max_grad_norm=1e9)
    policy, stats = _step(rollouts, ADVANTAGES, budget, settings)
    reference = _expected(rollouts, ADVANTAGES)
    assert stats.tokens == 18
    # On policy every ratio is 1: -(3 * 1 + 9 * -0.5 + 1 * 2 + 5 * 0.25) / 18.
    assert stats.loss == pytest.approx(-1.75 / 18, abs=1e-6)
    assert stats.clipped == 0
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
    policy, stats = _step(rollouts, [1.0, 1e38, 1e38, 1e38], 1000, TrainSettings(world_size=1))
    assert not torch.isfinite(torch.tensor(stats.grad_norm))
    for parameter, initial in zip(policy.parameters(), Bigram().parameters(), strict=True):
        assert torch.equal(parameter, initial)


def test_a_pack_without_rollouts_adds_nothing(rollouts: list[Rollout]) -> None:
    settings = TrainSettings(world_size=1, max_grad_norm=1e9)
    targets = targets_of(rollouts, ADVANTAGES)
    results = []
    for packs, pack_targets in [([rollouts], [targets]), ([rollouts, []], [targets, []])]:
        policy = Bigram()
        optimizer = build_optimizer(policy, settings)
        stats = train_step(policy, optimizer, packs, pack_targets, objective=PLAIN, settings=settings)
        results.append((policy, stats))
    (without, stats), (with_empty, stats_with_empty) = results
    assert stats == stats_with_empty
    assert torch.equal(without.table, with_empty.table)
    assert torch.equal(without.head, with_empty.head)


def test_corrections_masks_ratios_and_the_references_pull_together(rollouts: list[Rollout]) -> None:
    """The gradient of a whole GRPO objective against the same written out with plain autograd."""
    rng = np.random.default_rng(0)
    policy = Bigram()
    part = shares([len(rollout.ids) for rollout in rollouts], [True, True, False, True], "sequence")
    given, terms = [], []
    for rollout, share, a in zip(rollouts, part, ADVANTAGES, strict=True):
        logprobs = _logprobs(policy, rollout)
        old, reference = (logprobs.detach().double().numpy() + rng.normal(0, 0.5, len(share)) for _ in range(2))
        weights = rng.uniform(0, 2, len(share))
        given.append(Targets(np.full(len(share), a), share, weights, old=old, reference=reference))
        ratio = torch.exp(logprobs - torch.from_numpy(old))
        surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a) * torch.from_numpy(weights)
        pull = torch.from_numpy(reference) - logprobs
        terms.append(((0.1 * (torch.exp(pull) - pull - 1) - surrogate) * torch.from_numpy(share)).sum())
    loss = torch.stack(terms).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    settings = TrainSettings(world_size=1, max_grad_norm=1e9)
    _, stats = _step(rollouts, given, 15, settings, Objective(kl=0.1))
    assert stats.loss == pytest.approx(loss.item(), abs=1e-5)
    assert stats.grad_norm == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-4)
    assert stats.tokens == 17
    assert 0 < stats.clipped < 1


def test_the_value_head_comes_to_expect_the_return(rollouts: list[Rollout]) -> None:
    settings = TrainSettings(world_size=1, value_learning_rate=0.05)
    head = ValueHead(8, settings)
    objective = Objective(value_weight=1.0, value_clip=10.0)
    losses = []
    for _ in range(60):
        nothing = [np.zeros(len(rollout.ids)) for rollout in rollouts]
        share = shares([len(rollout.ids) for rollout in rollouts], [True] * 4, "token")
        given = [
            Targets(none, part, none + 1, returns=none + 0.7, old_values=none)
            for none, part in zip(nothing, share, strict=True)
        ]
        losses.append(_step(rollouts, given, 1000, settings, objective, head)[1].value_loss)
    assert losses[0] == pytest.approx(0.5 * 0.7**2)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_value_heads_weights_decay_as_the_settings_ask(decay: float) -> None:
    head = ValueHead(8, TrainSettings(weight_decay=decay, value_learning_rate=0.5))
    torch.nn.init.ones_(head.linear.weight)
    head.step()
    # No gradient moved the weights: AdamW's decay alone did, by learning rate times decay.
    torch.testing.assert_close(head.linear.weight.detach(), torch.full((1, 8), 1 - 0.5 * decay))
