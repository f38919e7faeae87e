"""Each module of a training copy on the very inputs that the engine's module had in a prefill.

Differences do not add up here, as they do in a whole forward: what parts is the module itself.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from omni_rl.models.nemotron_omni.language.attention import Attention
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mamba import MambaMixer
from omni_rl.models.nemotron_omni.language.norm import AddRMSNorm
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.vision import FusedAttention
from omni_rl.rollout import hooks as engine_hooks
from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.types import Rollout
from omni_rl.train import hooks as train_hooks


@dataclass(frozen=True)
class Call:
    """One call of an engine's module: what it was given and what it gave."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Any


@dataclass(frozen=True)
class Parity:
    """`equal`: share of output elements that are the same bit for bit. `relative`: norm of the difference over the
    norm of the engine's output, of the call where it is largest."""

    equal: float
    relative: float


def calls(engine: RolloutEngine, rollout: Rollout) -> dict[str, list[Call]]:
    """Every call of the modules of `rollout.hooks.PLACES` while one answer is scored alone, by their shared names."""
    found: dict[str, list[Call]] = {}
    given: dict[str, tuple[Any, Any]] = {}
    with ExitStack() as stack:
        for name, module in _modules(engine.model, engine_hooks.PLACES).items():

            def before(_: Any, positional: Any, named: Any, name: str = name) -> None:
                given[name] = _copied(positional), _copied(named)  # a module may overwrite its input

            def after(_: Any, __: Any, output: Any, name: str = name) -> None:
                found.setdefault(name, []).append(Call(*given.pop(name), _copied(output)))

            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        engine.rescore_alone(rollout)
    return found


@torch.no_grad()
def parities(
    model: NemotronOmniForConditionalGeneration, engine_calls: Sequence[Mapping[str, Sequence[Call]]]
) -> dict[str, Parity]:
    """`model`'s modules on the calls of several answers, by the modules' shared names."""
    modules = _modules(model, train_hooks.PLACES)
    by_name: dict[str, list[tuple[int, int, float]]] = {}
    for of_answer in engine_calls:
        for name, made in of_answer.items():
            by_name.setdefault(name, []).extend(_compare(_run(modules[name], call), call.output) for call in made)
    return {
        name: Parity(sum(same for same, _, _ in rows) / sum(size for _, size, _ in rows), max(row[2] for row in rows))
        for name, rows in by_name.items()
    }


def _modules(model: nn.Module, places: Mapping[str, engine_hooks.Place]) -> dict[str, nn.Module]:
    found = engine_hooks.places(model, places)
    return {name: module for name, (module, side) in found.items() if side == "output" and name != engine_hooks.LOGITS}


def _run(module: nn.Module, call: Call) -> Any:
    """Both sides take the same tensors; what comes with them has other forms."""
    rows = next(part for part in (*call.positional, *call.named.values()) if isinstance(part, torch.Tensor))
    if isinstance(module, Attention | MambaMixer):
        return module(rows, PackedLayout.of(torch.tensor([0, len(rows)])))
    if isinstance(module, FusedAttention):
        mask = call.named.get("mask_meta")
        return module(rows, cu_seqlens=None if mask is None else mask.cu_seqlens)
    if isinstance(module, AddRMSNorm):
        return module(rows, *call.positional[1:] or (None,))
    return module(*call.positional, **call.named)


def _compare(ours: Any, theirs: Any) -> tuple[int, int, float]:
    """Equal elements, elements, relative difference: of all tensors that both sides give."""
    pairs = list(zip(_tensors(ours), _tensors(theirs), strict=False))
    same = sum(int((one.reshape(other.shape) == other).sum()) for one, other in pairs)
    apart = sum(float((one.reshape(other.shape).double() - other.double()).square().sum()) for one, other in pairs)
    whole = sum(float(other.double().square().sum()) for _, other in pairs)
    return same, sum(other.numel() for _, other in pairs), (apart / whole) ** 0.5


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple | list) else []


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        return tuple(map(_copied, value))
    return {name: _copied(part) for name, part in value.items()} if isinstance(value, dict) else value
