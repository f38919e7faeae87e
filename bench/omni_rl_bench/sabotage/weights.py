"""Defines faults of an engine's weights: what damages them. A fault takes the worker that holds them, and a seed."""

from functools import partial
from typing import Any

import numpy as np
import torch

from omni_rl.consistency.actions import Cause
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault, Put
from omni_rl_bench.sabotage.syncs import before_verify

LAYER = "language_model.model.layers"
EXPERTS = "mixer.experts.routed_experts"
MOE = (2, 6)
"""The numbers of the layers of experts."""
BYTES = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def zero(worker: Any, seed: int) -> None:
    patches.parameter(worker, f"{LAYER}.4.mixer.up_proj.weight").zero_()


def overwrite_conv(worker: Any, seed: int) -> None:
    """Overwrite a convolution by other weights of the same size, as happens to an alias that is written twice."""
    weight = patches.parameter(worker, f"{LAYER}.{(0, 3, 5)[seed % 3]}.mixer.conv1d.weight")
    weight.copy_(weight.flip(0).clone())


def swap_query_and_key(worker: Any, seed: int) -> None:
    """Swap the first head of the query with that of the key."""
    qkv = patches.parameter(worker, f"{LAYER}.1.mixer.qkv_proj.weight")
    text = worker.vllm_config.model_config.hf_config.llm_config
    query = slice(0, text.head_dim)
    key = slice(text.num_attention_heads * text.head_dim, (text.num_attention_heads + 1) * text.head_dim)
    first = qkv[query].clone()
    qkv[query] = qkv[key]
    qkv[key] = first


def permute_experts(worker: Any, seed: int) -> None:
    """Permute experts without their router."""
    for name in ("w13_weight", "w2_weight"):
        weight = patches.parameter(worker, f"{LAYER}.{(2, 6)[seed % 2]}.mixer.experts.routed_experts.{name}")
        weight.copy_(weight.roll(1, 0).clone())


def round_router_bias(worker: Any, seed: int) -> None:
    for layer in (2, 6):
        bias = patches.parameter(worker, f"{LAYER}.{layer}.mixer.gate.e_score_correction_bias")
        bias.copy_(bias.bfloat16().float())


def flip_bit(worker: Any, seed: int) -> None:
    """Flip a random bit of a random element of a random parameter."""
    rng = np.random.default_rng(seed)
    tensors = [p.data for p in worker.get_model().language_model.parameters() if p.dtype in BYTES]
    tensor = tensors[rng.integers(len(tensors))].reshape(-1)
    bits = tensor.view(BYTES[tensor.dtype])
    at = int(rng.integers(len(bits)))
    bit = int(rng.integers(8 * tensor.element_size() - 1))
    bits[at] ^= 1 << bit


def not_a_number(worker: Any, seed: int) -> None:
    """Put a NaN into one expert, so that only some tokens meet it."""
    patches.parameter(worker, f"{LAYER}.2.mixer.experts.routed_experts.w2_weight")[seed % 8, 0, 0] = torch.nan


def swap_experts_between_layers(worker: Any, seed: int) -> None:
    """Swap one expert of the first layer of experts with one of the second."""
    expert = seed % 8
    for name in ("w13_weight", "w2_weight"):
        first, second = (patches.parameter(worker, f"{LAYER}.{layer}.{EXPERTS}.{name}")[expert] for layer in MOE)
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)


def rescale_tower_buffers(worker: Any, seed: int) -> None:
    """Rescale the running statistics of the sound tower's norms, which are not parameters."""
    for module in worker.get_model().modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            assert module.running_var is not None
            module.running_var.mul_(1.5)


def _damage(name: str, damage: Put) -> tuple[Fault, Fault]:
    """Return two faults of weights: damaged while a sync writes them, and while they are served."""
    causes = (Cause.CORRUPT_WEIGHTS,)
    return (
        Fault(name, causes, patches.in_worker(partial(before_verify, damage)), "before VERIFY", proven=True),
        Fault(name, causes, patches.in_worker(damage), "after VERIFY", proven=True),
    )


FAULTS = (
    *_damage("tensor zeroed", zero),
    *_damage("conv weights overwritten", overwrite_conv),
    *_damage("query and key swapped", swap_query_and_key),
    *_damage("experts permuted", permute_experts),
    *_damage("expert swapped between layers", swap_experts_between_layers),
    *_damage("tower buffers rescaled", rescale_tower_buffers),
    *_damage("router bias rounded", round_router_bias),
    *_damage("one bit flipped", flip_bit),
    *_damage("NaN in one weight", not_a_number),
)
