"""A small model with a loader of its own that does everything vLLM's loaders do to released tensors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from omni_rl.sync.digest import checksums
from omni_rl.sync.layout import LayoutMap, Mismatch
from omni_rl.sync.released import TensorSpec

HEADS, WIDTH, ROWS, VOCABULARY, PADDED = 4, 8, 6, 10, 16
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


class ToyEngine(nn.Module):
    """Fused, padded, sliced by columns, transposed, widened, transformed and aliased storage, and two constants."""

    steps: torch.Tensor
    scale: torch.Tensor
    frequencies: torch.Tensor
    view: torch.Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.empty(3 * ROWS, WIDTH, dtype=dtype))
        self.embedding = nn.Parameter(torch.zeros(PADDED, WIDTH, dtype=dtype))
        self.left = nn.Parameter(torch.empty(ROWS, WIDTH // 2, dtype=dtype))
        self.transposed = nn.Parameter(torch.empty(WIDTH, ROWS, dtype=dtype))
        self.experts = nn.Parameter(torch.empty(3, ROWS, WIDTH, dtype=dtype))
        self.gate = nn.Parameter(torch.empty(ROWS, WIDTH, dtype=torch.float32))
        self.decay = nn.Parameter(torch.empty(HEADS, dtype=torch.float32))
        self.layer_scale = nn.Parameter(torch.full((WIDTH,), 2.0, dtype=dtype))
        self.register_buffer("view", self.left.data.view(-1), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("frequencies", torch.arange(4) / 3, persistent=False)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._load(name, tensor)

    def _load(self, name: str, tensor: torch.Tensor) -> None:
        if name in ("q", "k", "v"):
            first = "qkv".index(name) * ROWS
            self.qkv[first : first + ROWS].copy_(tensor)
        elif name.startswith("experts."):
            self.experts[int(name.removeprefix("experts."))].copy_(tensor)
        elif name == "embedding":
            self.embedding[:VOCABULARY].copy_(tensor)
            self.embedding[VOCABULARY:].fill_(0)
        elif name == "wide":
            self.left.copy_(tensor[:, : WIDTH // 2])
            self.transposed.copy_(tensor.t())
        elif name == "a_log":
            self.decay.copy_(tensor)
            self.decay.copy_(-torch.exp(self.decay.float()))
        else:
            getattr(self, name).copy_(tensor)


def toy_specs(dtype: torch.dtype) -> dict[str, TensorSpec]:
    matrix = TensorSpec(dtype, (ROWS, WIDTH))
    return {
        "embedding": TensorSpec(dtype, (VOCABULARY, WIDTH)),
        **dict.fromkeys(("q", "k", "v", "wide", "gate", "experts.0", "experts.1", "experts.2"), matrix),
        "a_log": TensorSpec(torch.float32, (HEADS,)),
        "steps": TensorSpec(torch.int64, ()),
    }


def toy_weights(dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(spec.shape, generator=generator) for name, spec in toy_specs(dtype).items()}
    tensors["steps"] *= 100
    return {name: tensors[name].to(spec.dtype) for name, spec in toy_specs(dtype).items()}


def held(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything under parameters and buffers, by every name it has."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach().clone() for name, tensor in named}


def unequal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    """Names under which a single bit differs."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(_raw(one[name]), _raw(other[name]))]


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def derived(dtype: torch.dtype = torch.float32) -> tuple[ToyEngine, LayoutMap]:
    model = ToyEngine(dtype)
    return model, LayoutMap.derive(model, toy_specs(dtype), model.load)


def found_in(model: ToyEngine, layout: LayoutMap, weights: Mapping[str, torch.Tensor]) -> tuple[Mismatch, ...]:
    """What is wrong with an engine that was given `weights`: by comparing, and by checksums, which must agree."""
    wrong = layout.verify(weights, model)
    assert layout.prove(weights, checksums(weights), model) == wrong
    return wrong


def with_block(layout: LayoutMap, index: int, **changes: Any) -> LayoutMap:
    blocks = list(layout.blocks)
    blocks[index] = blocks[index]._replace(**changes)
    return replace(layout, blocks=tuple(blocks))
