"""Makes one optimiser step over a global batch: gradients of all packs, then one clipped AdamW update."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from omni_rl.models.packed import PackedScores
from omni_rl.rollout.types import Rollout
from omni_rl.train.device import CPU
from omni_rl.train.packing import pack, temperatures
from omni_rl.train.scoring import Policy
from omni_rl.train.settings import Objective, TrainSettings
from omni_rl.train.surrogates import clipped_surrogate, clipped_value_loss, reference_kl
from omni_rl.train.targets import Targets
from omni_rl.train.types import StepStats
from omni_rl.train.value import ValueHead


def build_optimizer(model: torch.nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Return an AdamW optimiser over the float32 master parameters."""
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
    targets: Sequence[Sequence[Targets]],
    *,
    objective: Objective,
    settings: TrainSettings,
    head: ValueHead | None = None,
    device: torch.device = CPU,
) -> StepStats:
    """Make an optimiser step with this rank's share of the batch, `packs` of rollouts and the targets of each, on the
    policy's `device`, and return the statistics of the whole batch.

    The loss is a sum over the tokens of all ranks, each weighed by its share, so that the step does not depend on how
    the batch was packed or dealt out. A gradient that is not finite leaves the weights as they were; the returned
    `grad_norm` shows that. With `head` and a value weight, the head learns too.
    """
    head = head if objective.value_weight > 0 else None
    _set_learning_rate(
        optimizer, settings.learning_rate if objective.learning_rate is None else objective.learning_rate
    )
    optimizer.zero_grad(set_to_none=True)
    total = _Sums.none()
    for rollouts, pack_targets in zip(packs, targets, strict=True):
        scores = policy.score_packed(
            pack(rollouts, replay=objective.replay_routing).to(device),
            temperature=temperatures(rollouts).to(device),
            logprob_chunk=settings.logprob_chunk,
            record_routing=False,
        )
        loss, sums = pack_loss(scores, pack_targets, objective, head)
        # FSDP averages gradients over the ranks; the loss is a sum over them.
        (loss * settings.world_size).backward()  # type: ignore[no-untyped-call]
        total.add(sums)
    total.reduce()
    norm = _clip_gradients(optimizer, settings.max_grad_norm)
    if torch.isfinite(norm):
        optimizer.step()
        if head is not None:
            head.step()
    optimizer.zero_grad(set_to_none=True)
    if head is not None:
        head.forget_gradients()
    return total.stats(norm.item())


@dataclass(frozen=True)
class _Columns:
    """The targets of a pack, float32 [scored tokens] each. The token of an empty pack counts for nothing."""

    advantages: torch.Tensor
    shares: torch.Tensor
    weights: torch.Tensor
    old: torch.Tensor | None
    reference: torch.Tensor | None
    returns: torch.Tensor | None
    old_values: torch.Tensor | None

    @classmethod
    def of(cls, targets: Sequence[Targets], device: torch.device) -> "_Columns":
        if not targets:
            nothing = torch.zeros(1, device=device)
            return cls(nothing, nothing, nothing, None, None, nothing, nothing)
        columns = {}
        for name in vars(targets[0]):
            parts = [getattr(target, name) for target in targets]
            given = [part for part in parts if part is not None]
            assert len(given) in (0, len(parts)), f"{name}: all answers of a batch have it, or none"
            columns[name] = torch.from_numpy(np.concatenate(given)).float().to(device) if given else None
        return cls(**columns)  # type: ignore[arg-type]


def pack_loss(
    scores: PackedScores, targets: Sequence[Targets], objective: Objective, head: ValueHead | None
) -> tuple[torch.Tensor, "_Sums"]:
    """Return a pack's part of the loss, a float32 scalar, and the sums from which the step's statistics are made."""
    columns = _Columns.of(targets, scores.logprobs.device)
    logprobs = scores.logprobs.float()
    old = logprobs.detach() if columns.old is None else columns.old
    policy = clipped_surrogate(logprobs, old, columns.advantages, low=objective.clip_low, high=objective.clip_high)
    token_losses = policy * columns.weights
    counted = columns.shares > 0
    held = (policy.detach() > -torch.exp(logprobs.detach() - old) * columns.advantages) & counted
    kl = value = torch.zeros_like(policy)
    if columns.reference is not None and objective.kl > 0:
        kl = reference_kl(logprobs, columns.reference)
        token_losses = token_losses + objective.kl * kl
    if head is not None:
        assert scores.hidden is not None
        assert columns.returns is not None
        assert columns.old_values is not None
        values = head(scores.hidden)
        value = clipped_value_loss(values, columns.old_values, columns.returns, clip=objective.value_clip)
        token_losses = token_losses + objective.value_weight * value
    loss = (token_losses * columns.shares).sum()
    parts = [loss, counted.sum(), held.sum(), kl[counted].sum(), value[counted].sum()]
    return loss, _Sums(torch.stack([part.detach().double() for part in parts]).cpu())


@dataclass
class _Sums:
    """The sums of an update, float64 [5] on the host: the loss, the number of tokens, and over the tokens the number
    that were clipped, the KL and the value loss."""

    values: torch.Tensor

    @classmethod
    def none(cls) -> "_Sums":
        return cls(torch.zeros(5, dtype=torch.float64))

    def add(self, other: "_Sums") -> None:
        self.values += other.values

    def reduce(self) -> None:
        """Add up the sums of all ranks; a collective."""
        if dist.is_initialized():
            dist.all_reduce(self.values)

    def stats(self, grad_norm: float) -> StepStats:
        loss, tokens, clipped, kl, value = self.values.tolist()
        each = max(tokens, 1.0)
        return StepStats(
            loss=loss,
            grad_norm=grad_norm,
            tokens=int(tokens),
            clipped=clipped / each,
            kl=kl / each,
            value_loss=value / each,
        )


def _set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """Scale the gradients to a global norm of at most `max_norm`, and return the norm they had before, which is the
    same on every rank."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
