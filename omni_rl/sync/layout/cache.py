"""Provides a checked layout map for an engine that has just loaded its checkpoint: derived once, then read from a
file."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from blake3 import blake3
from torch import nn

from omni_rl.errors import LayoutError
from omni_rl.media.digests import tensor_digest
from omni_rl.sync.layout import file
from omni_rl.sync.layout.derive import Load
from omni_rl.sync.layout.findings import listed
from omni_rl.sync.layout.map import LayoutMap
from omni_rl.sync.layout.storages import storages
from omni_rl.sync.released import TensorSpec

VARIABLE = "OMNI_RL_CACHE"
log = logging.getLogger(__name__)


def directory() -> Path:
    """Return where map files are: $OMNI_RL_CACHE/layout, or ~/.cache/omni-rl/layout."""
    given = os.environ.get(VARIABLE)
    return (Path(given) if given else Path.home() / ".cache" / "omni-rl") / "layout"


def digest(model: nn.Module, specs: Mapping[str, TensorSpec], served: Mapping[str, object]) -> str:
    """Return 32 hex digits over what a map depends on: released tensors, the engine's storages, and how it is
    `served`."""
    parts = {
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "served": dict(served),
        "specs": [[name, str(spec.dtype), list(spec.shape)] for name, spec in sorted(specs.items())],
        "storages": [[*map(str, storage.spec)] for storage in storages(model)],
    }
    return blake3(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def prepare(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    load: Load,
    served: Mapping[str, object],
    folder: Path | None = None,
) -> LayoutMap:
    """Return the map of `model`, which the engine has just loaded from a checkpoint; `tensors` are its weights as sent.

    A map from the cache must explain every byte of the engine as it is. A derived one must, too: it is checked against
    loads of random weights, then applied with `tensors`, after which the engine must be bit for bit what its own full
    start had made of it. `served` is what else decides where weights land: the engine's version, its configuration, the
    rank.

    Raises `LayoutError` if that fails, or if a format is not covered; the engine must not be used then.
    """
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    path = (folder or directory()) / f"{digest(model, specs, served)}.safetensors"
    if path.exists():
        try:
            cached = file.read(path)
            if not cached.verify(tensors, model):
                return cached
        except LayoutError:
            pass  # A file from another version, or a damaged one: what follows writes it anew.
    return _derived(model, specs, tensors, load, path)


def _derived(
    model: nn.Module, specs: Mapping[str, TensorSpec], tensors: Mapping[str, torch.Tensor], load: Load, path: Path
) -> LayoutMap:
    fresh = _digests(model)
    layout = LayoutMap.derive(model, specs, load)
    layout.check_fresh(model, load)
    layout.apply(tensors, model)
    if wrong := [name for name, held in _digests(model).items() if held != fresh[name]]:
        raise LayoutError(
            f"the layout map is wrong: applied with the checkpoint's weights, {listed(wrong)} differ from the engine's "
            "own load"
        )
    try:
        file.write(layout, path)
    except OSError as error:
        log.warning(
            "the layout map is derived at every start: %s cannot be written (%s); set %s", path, error, VARIABLE
        )
    return layout


def _digests(model: nn.Module) -> dict[str, str]:
    return {storage.spec.name: tensor_digest(storage.flat) for storage in storages(model)}
