"""Holds earlier weights of a rank to score with: the reference of a KL term, and the weights that stale answers were
sampled with.

They are held on the host, because a device has no memory for several versions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from omni_rl.errors import ConfigError


@dataclass(frozen=True)
class _Weights:
    version: str
    shards: list[torch.Tensor]


class Snapshots:
    """Holds this rank's shards of earlier weights, by name. Every rank has the same names."""

    def __init__(self) -> None:
        self._weights: dict[str, _Weights] = {}

    def take(self, name: str, model: nn.Module, version: str) -> None:
        """Hold a copy of the current shards under `name`, in place of any earlier snapshot of that name."""
        self._weights[name] = _Weights(version, _copies(model))

    def drop(self, name: str | None) -> None:
        """Drop the snapshot of that name, if there is one; without a name, drop all of them."""
        if name is None:
            self._weights.clear()
        else:
            self._weights.pop(name, None)

    def version(self, name: str) -> str:
        """Return the version of a snapshot's weights. Raises `ConfigError`, on every rank, if there is none of that
        name."""
        if name not in self._weights:
            there = ", ".join(sorted(self._weights)) or "none"
            raise ConfigError(f"there is no snapshot {name!r} of the weights; there are: {there}")
        return self._weights[name].version

    @contextmanager
    def in_place(self, name: str, model: nn.Module) -> Iterator[None]:
        """Give the model the weights of a snapshot inside the block, and its own again afterwards."""
        theirs = self._weights[name].shards
        own = _copies(model)
        _write(model, theirs)
        try:
            yield
        finally:
            _write(model, own)


def _copies(model: nn.Module) -> list[torch.Tensor]:
    """Return copies, on the host, of the storage of every parameter on this rank."""
    return [shard.to("cpu", copy=True) for shard in _shards(model)]


def _write(model: nn.Module, values: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for shard, value in zip(_shards(model), values, strict=True):
            shard.copy_(value)


def _shards(model: nn.Module) -> list[torch.Tensor]:
    """Return the storage of every parameter on this rank."""
    if isinstance(model, FSDPModule):
        # After a forward without a backward the root is still gathered, and would hide what is written to its shards.
        model.reshard()
    return [p.to_local() if isinstance(p, DTensor) else p for p in (q.detach() for q in model.parameters())]
