"""Faults of an engine's weights: what a sync leaves out, and what damages them.

A fault takes the engine and a seed. Where a sync goes wrong, VERIFY sees it, unless `vouch` has the engine say what a
check of names and success would say.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from omni_rl.sabotage import points
from omni_rl.sync.replica import Proof

Damage = Callable[[Any, int], None]
LAYER = "language_model.model.layers"
BYTES = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def before_verify(damage: Damage, engine: Any, seed: int) -> None:
    """Damage what the next sync writes, as soon as it is written."""

    def write(original: Any, sealed: Any) -> None:
        original(sealed)
        damage(engine, seed)

    points.once(engine._weights, "write", write)


def vouch(engine: Any) -> None:
    """Let the next proof find nothing: a check that looks at names and success alone."""

    def prove(original: Any, sealed: Any) -> Proof:
        return Proof(sealed.version, len(sealed.tensors), 0, engine._weights.elements, engine._weights.elements)

    points.once(engine._weights, "prove", prove)


def skip(engine: Any, seed: int) -> None:
    """The next sync writes nothing."""
    points.once(engine._weights, "write", lambda original, sealed: None)


def half(engine: Any, seed: int) -> None:
    """The next sync ends half way."""
    leave_out(engine, lambda names: names[len(names) // 2 :])


def leave_out(engine: Any, chosen: Callable[[list[str]], list[str]]) -> None:
    """The next sync leaves the chosen of its tensors as they were."""

    def write(original: Any, sealed: Any) -> None:
        kept = [tensor.clone() for tensor in _flats(engine)]
        original(sealed)
        stale = set(chosen(list(sealed.tensors)))
        names = list(engine._weights._layout.specs)
        for block in engine._weights._layout.blocks:
            if names[block.tensor] in stale:
                block.of_storage(_flats(engine)[block.storage]).copy_(block.of_storage(kept[block.storage]))

    points.once(engine._weights, "write", write)


def _flats(engine: Any) -> list[torch.Tensor]:
    flats: list[torch.Tensor] = engine._weights._layout._flats(engine.model)
    return flats


def never_written(name: str, engine: Any, seed: int) -> None:
    """The next sync never writes tensors whose released name has `name` in it."""
    leave_out(engine, lambda names: [found for found in names if name in found])


def zero(engine: Any, seed: int) -> None:
    points.parameter(engine, f"{LAYER}.4.mixer.up_proj.weight").zero_()


def overwrite_conv(engine: Any, seed: int) -> None:
    """By other weights of the same size, as an alias that is written twice is."""
    weight = points.parameter(engine, f"{LAYER}.{(0, 3, 5)[seed % 3]}.mixer.conv1d.weight")
    weight.copy_(weight.flip(0).clone())


def swap_query_and_key(engine: Any, seed: int) -> None:
    """The first head of the one for that of the other."""
    qkv = points.parameter(engine, f"{LAYER}.1.mixer.qkv_proj.weight")
    text = engine.llm_engine.model_config.hf_config.llm_config
    query = slice(0, text.head_dim)
    key = slice(text.num_attention_heads * text.head_dim, (text.num_attention_heads + 1) * text.head_dim)
    first = qkv[query].clone()
    qkv[query] = qkv[key]
    qkv[key] = first


def permute_experts(engine: Any, seed: int) -> None:
    """Without their router."""
    for name in ("w13_weight", "w2_weight"):
        weight = points.parameter(engine, f"{LAYER}.{(2, 6)[seed % 2]}.mixer.experts.routed_experts.{name}")
        weight.copy_(weight.roll(1, 0).clone())


def round_router_bias(engine: Any, seed: int) -> None:
    for layer in (2, 6):
        bias = points.parameter(engine, f"{LAYER}.{layer}.mixer.gate.e_score_correction_bias")
        bias.copy_(bias.bfloat16().float())


def flip_bit(engine: Any, seed: int) -> None:
    """Any bit of any element of any parameter."""
    rng = np.random.default_rng(seed)
    tensors = [p.data for p in engine.model.language_model.parameters() if p.dtype in BYTES]
    tensor = tensors[rng.integers(len(tensors))].reshape(-1)
    bits = tensor.view(BYTES[tensor.dtype])
    at = int(rng.integers(len(bits)))
    bit = int(rng.integers(8 * tensor.element_size() - 1))
    bits[at] ^= 1 << bit


def not_a_number(engine: Any, seed: int) -> None:
    """In one expert, so that only some tokens meet it."""
    points.parameter(engine, f"{LAYER}.2.mixer.experts.routed_experts.w2_weight")[seed % 8, 0, 0] = torch.nan
