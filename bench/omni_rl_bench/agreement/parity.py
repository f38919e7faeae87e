"""Runs each module of a training copy on the very inputs that the engine's module had in a prefill.

Differences do not add up here, as they do in a whole forward: each one is the module's own.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from omni_rl.models import recording
from omni_rl.models.nemotron_omni.language.attention import Attention
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mamba import MambaMixer
from omni_rl.models.nemotron_omni.language.norm import AddRMSNorm
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.places import IN_ENGINE, IN_TRAINER
from omni_rl.models.nemotron_omni.vision import FusedAttention
from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.types import Rollout


@dataclass(frozen=True)
class Call:
    """One call of an engine's module: its inputs and its outputs."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Any


@dataclass(frozen=True)
class Parity:
    """How equal a module's outputs are on both sides.

    `equal` is the share of output elements that are the same bit for bit, `relative` the norm of the difference over
    the norm of the engine's output, for the call where it is largest.
    """

    equal: float
    relative: float


def calls(engine: RolloutEngine, rollout: Rollout) -> dict[str, list[Call]]:
    """Return every call of the modules of `IN_ENGINE` while one answer is scored alone, by their shared names."""
    found: dict[str, list[Call]] = {}
    given: dict[str, tuple[Any, Any]] = {}
    with ExitStack() as stack:
        for name, module in _modules(engine.model, IN_ENGINE).items():

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
    """Run `model`'s modules on the calls of several answers; return the parities by the modules' shared names."""
    modules = _modules(model, IN_TRAINER)
    by_name: dict[str, list[tuple[int, int, float]]] = {}
    for of_answer in engine_calls:
        for name, made in of_answer.items():
            by_name.setdefault(name, []).extend(_compare(_run(modules[name], call), call.output) for call in made)
    return {
        name: Parity(sum(same for same, _, _ in rows) / sum(size for _, size, _ in rows), max(row[2] for row in rows))
        for name, rows in by_name.items()
    }


def _modules(model: nn.Module, places: Mapping[str, recording.ModuleSide]) -> dict[str, nn.Module]:
    found = recording.places(model, places)
    return {name: module for name, (module, side) in found.items() if side == "output" and name != recording.LOGITS}


def _run(module: nn.Module, call: Call) -> Any:
    """Run a module on a call's inputs: both sides take the same tensors, but their other arguments differ in form."""
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
    """Return equal elements, elements and relative difference of all tensors that both sides return."""
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
