"""The loss of one sequence, and the call of a micro-batch's losses."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prime_rl.configs.trainer import CustomLossConfig, DefaultLossConfig


@dataclass
class LossInputs:
    trainer_logprobs: torch.Tensor
    inference_logprobs: torch.Tensor
    ref_logprobs: torch.Tensor | None
    advantages: torch.Tensor
    loss_mask: torch.Tensor
    loss_weights: torch.Tensor | None = None


@dataclass
class LossOutputs:
    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


def default_loss_fn(inputs: LossInputs, config: DefaultLossConfig) -> LossOutputs:
    log_ratio = inputs.trainer_logprobs - inputs.inference_logprobs
    loss = -inputs.advantages * log_ratio.exp() + config.kl_tau * log_ratio**2
    return LossOutputs(loss[inputs.loss_mask].sum(), {"ratio": log_ratio[inputs.loss_mask].exp().mean()})


def setup_rl_loss_fn(config: Any) -> Callable[[LossInputs], LossOutputs]:
    if isinstance(config, CustomLossConfig):
        module, _, name = config.import_path.rpartition(".")
        custom = getattr(importlib.import_module(module), name)
        return lambda inputs: custom(inputs, **config.kwargs)
    return lambda inputs: default_loss_fn(inputs, config)


def compute_loss(
    *,
    trainer_logprobs: Sequence[torch.Tensor],
    inference_logprobs: Sequence[torch.Tensor],
    advantages: Sequence[torch.Tensor],
    loss_mask: Sequence[torch.Tensor],
    rl_loss_fn: Callable[[LossInputs], LossOutputs],
    rl_scale: int,
    **_others: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    found: dict[str, list[torch.Tensor]] = {}
    loss = trainer_logprobs[0].sum() * 0.0
    for ours, theirs, advantage, mask in zip(trainer_logprobs, inference_logprobs, advantages, loss_mask, strict=True):
        outputs = rl_loss_fn(LossInputs(ours, theirs, None, advantage, mask))
        loss = loss + outputs.loss
        for name, value in outputs.metrics.items():
            found.setdefault(name, []).append(value)
    return loss / rl_scale, {name: torch.stack(values) for name, values in found.items()}
