"""Defines faults of what a side computes with the right weights and inputs. A fault takes an engine or a rank, and a
seed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm

from omni_rl.consistency.actions import Cause
from omni_rl.models.nemotron_omni.language.moe import MoE
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault

EPS = 1e-3
"""The wrong epsilon of norms: a hundred times the model's."""
SCALE = 1.25
"""The factor on attention's right scale of scores."""
DROPOUT = 0.1


def sound_rescaled(worker: Any, seed: int) -> None:
    """Multiply the sound encoder's input by the root of its width, as `scale_input` does, transformers' own default."""
    patches.hook(worker.model.sound_encoder.subsampling, lambda found: found * 8.0)


def norm_eps(engine: Any, seed: int) -> None:
    """Set another epsilon in every norm of the language model."""
    for module in engine.model.language_model.modules():
        if isinstance(module, RMSNorm):
            patches.replace(module, "variance_epsilon", lambda original: EPS)


def attention_scale(engine: Any, seed: int) -> None:
    for module in engine.model.language_model.modules():
        if isinstance(module, Attention):
            patches.replace(module.impl, "scale", lambda original: SCALE * original)


def routed_scale(worker: Any, seed: int) -> None:
    """Leave the routed experts' sum unscaled."""
    for module in worker.model.modules():
        if isinstance(module, MoE):
            patches.replace(module, "scaling", lambda original: 1.0)


def router_in_bfloat16(worker: Any, seed: int) -> None:
    """Compute the router's scores in bfloat16, which are float32 in any model."""

    def instead(router: Any) -> Callable[[Any], Callable[[torch.Tensor], torch.Tensor]]:
        def scores(rows: torch.Tensor) -> torch.Tensor:
            return F.linear(rows.bfloat16(), router.weight.bfloat16()).float().sigmoid()

        return lambda original: scores

    for module in worker.model.modules():
        if isinstance(module, MoE):
            patches.replace(module.gate, "_scores", instead(module.gate))


def dropout(worker: Any, seed: int) -> None:
    """Apply dropout after the last layer, as a model in training mode does."""
    torch.manual_seed(seed)
    patches.hook(worker.model.language_model.model.layers[-1].norm, _dropped)


def _dropped(found: Any) -> Any:
    if isinstance(found, tuple):
        return (F.dropout(found[0], DROPOUT), *found[1:])
    return F.dropout(found, DROPOUT)


def batch_statistics(owner: Any, seed: int) -> None:
    """Normalise in the sound tower by the batch at hand, not by running statistics."""

    def by_batch(norm: Any, original: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

    for module in owner.model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            patches.replace(module, "forward", partial(by_batch, module))


KERNEL = (Cause.KERNEL,)
FAULTS = (
    Fault("sound encoder scales its input", KERNEL, sound_rescaled, side="trainer"),
    Fault("norm's epsilon", KERNEL, norm_eps),
    Fault("attention's scale", KERNEL, attention_scale),
    Fault("routed experts' scale", KERNEL, routed_scale, side="trainer"),
    Fault("router in bfloat16", (Cause.ROUTER, Cause.KERNEL), router_in_bfloat16, side="trainer"),
    Fault("dropout", KERNEL, dropout, side="trainer"),
    Fault("batch norm by its batch, trainer", KERNEL, batch_statistics, side="trainer"),
    Fault("batch norm by its batch, engine", KERNEL, batch_statistics),
)
