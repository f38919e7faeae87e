"""One optimiser step over a global batch: gradients of all packs, then one clipped AdamW update."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from omni_rl.rollout.types import Rollout
from omni_rl.train.losses import policy_gradient_sum
from omni_rl.train.packing import pack, temperatures
from omni_rl.train.scoring import Policy
from omni_rl.train.settings import TrainSettings
from omni_rl.train.types import StepStats


def build_optimizer(model: torch.nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over the float32 master parameters."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def train_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    packs: Sequence[Sequence[Rollout]],
    advantages: Sequence[Sequence[float]],
    *,
    tokens: int,
    settings: TrainSettings,
) -> StepStats:
    """Step on this rank's share of the batch: `packs` of rollouts and an advantage for each rollout.

    `tokens` is the number of sampled tokens of the whole batch on all ranks: the loss is the mean over those, so the
    step does not depend on how the batch was packed or dealt out. A gradient that is not finite leaves the weights as
    they were; the returned `grad_norm` tells.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for rollouts, pack_advantages in zip(packs, advantages, strict=True):
        scores = policy.score_packed(
            pack(rollouts),
            temperature=temperatures(rollouts),
            logprob_chunk=settings.logprob_chunk,
            record_routing=False,
        )
        loss = policy_gradient_sum(scores.logprobs, _per_token(rollouts, pack_advantages)) / tokens
        # FSDP averages gradients over the ranks; the loss is a sum over them.
        (loss * settings.world_size).backward()  # type: ignore[no-untyped-call]
        total += loss.detach().double()
    if dist.is_initialized():
        dist.all_reduce(total)
    norm = _clip_gradients(optimizer, settings.max_grad_norm)
    if torch.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepStats(loss=total.item(), grad_norm=norm.item(), tokens=tokens)


def _per_token(rollouts: Sequence[Rollout], advantages: Sequence[float]) -> torch.Tensor:
    """float32 [scored tokens of the pack]; the token of an empty pack counts for nothing."""
    if not rollouts:
        return torch.zeros(1)
    return torch.cat([torch.full((len(r.ids),), a) for r, a in zip(rollouts, advantages, strict=True)])


def _clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """Scale the gradients to a global norm of at most `max_norm`; returns the norm before, the same on every rank."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
