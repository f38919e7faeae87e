"""Records engine elements that no released tensor fills: they must hold what they held when the map was made."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from omni_rl.sync.layout.kinds import Kind
from omni_rl.sync.layout.storages import Storage


class Recorded(NamedTuple):
    """Elements of storage number `storage`, from `start` on, which must hold `values`."""

    storage: int
    kind: Kind
    start: int
    values: torch.Tensor

    def of_storage(self, flat: torch.Tensor) -> torch.Tensor:
        return flat[self.start : self.start + self.values.numel()]


def record(index: int, storage: Storage, mask: torch.Tensor) -> Iterator[Recorded]:
    """Yield the elements of a storage that `mask` (bool [elements]) marks, with the values that they hold now."""
    if not mask.any():
        return
    kind = Kind.PADDING
    if mask.all():
        kind = Kind.CONSTANT if storage.spec.persistent else Kind.DERIVED
    outside = torch.zeros(1, dtype=torch.int8)
    edges = torch.diff(mask.to(torch.int8), prepend=outside, append=outside)
    starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    for start, end in zip(starts, ends, strict=True):
        yield Recorded(index, kind, start, storage.flat[start:end].cpu().clone())
