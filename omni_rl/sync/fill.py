"""Writes weights into a slab: one process alone, or all processes of a sharded model together, each its own shards."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.sync.checksum import LANES, Checksum
from omni_rl.sync.group import ALONE, Group
from omni_rl.sync.manifest import Entry, Manifest, arrange, root_digest
from omni_rl.sync.parts import Released, Shares
from omni_rl.sync.pieces import Part, checksum_of, take_all
from omni_rl.sync.released import as_sent
from omni_rl.sync.slab import Slab


def fill(
    slab: Slab | None,
    tensors: Sequence[Released],
    places: tuple[Entry, ...],
    *,
    run: str,
    attempt: int,
    number: int,
    group: Group = ALONE,
) -> Manifest:
    """Write `tensors` to their `places`, in the dtypes that those have, and seal.

    Every process of `group` calls this, and gets the same manifest. Whatever fails in one is raised in all, and nothing
    is sealed. A process on another host than the slab's has None for it; the weights are then gathered and written by
    the first process, else each writes its own shards.

    Raises:
        SlabBusyError, SlabFullError, SlabError: as `Slab` raises them; the source lives on.
        SourceError: a process failed while it read its weights.
    """
    local = group.together(lambda: slab is not None)
    shares = Shares(first=group.first, gather=not all(local))
    try:
        ticket = group.together(lambda: _begin(slab, places) if group.first else "")[0]
        group.together(lambda: None if slab is None or group.first else slab.join(places, ticket))
        lanes = group.together(
            lambda: _lanes(shares, tensors, places, lambda name, part, start: _write(slab, name, part, start))
        )
        manifest = Manifest.seal(places, _texts(tensors, lanes), run=run, attempt=attempt, number=number)
        group.together(lambda: slab.seal(manifest) if slab is not None and group.first else None)
        return manifest
    finally:
        if slab is not None:
            slab.leave()


def digest(tensors: Sequence[Released], places: tuple[Entry, ...], *, group: Group = ALONE) -> str:
    """The digest of a slab filled with these, without a slab; every process of `group` calls this."""
    shares = Shares(first=group.first)
    lanes = group.together(lambda: _lanes(shares, tensors, places, checksum_of))
    checksums = _texts(tensors, lanes)
    return root_digest(replace(entry, checksum=checksums[entry.name]) for entry in places)


def places_of(tensors: Sequence[Released], dtype: torch.dtype) -> tuple[Entry, ...]:
    """Where tensors lie in a slab when they are sent to an engine of `dtype`."""
    sent = {t.name: as_sent(t.name, torch.empty(0, dtype=t.dtype), dtype).dtype for t in tensors}
    return arrange({t.name: (str(sent[t.name]).removeprefix("torch."), t.shape) for t in tensors})


def _begin(slab: Slab | None, places: tuple[Entry, ...]) -> str:
    assert slab is not None, "the first process of a source runs on the slab's host"
    return slab.begin(places)


def _write(slab: Slab | None, name: str, part: torch.Tensor, start: int) -> Checksum:
    assert slab is not None, "only the first process contributes to a slab of another host"
    return slab.write(name, part, start)


def _lanes(
    shares: Shares,
    tensors: Sequence[Released],
    places: tuple[Entry, ...],
    take: Callable[[str, torch.Tensor, int], Checksum],
) -> NDArray[np.uint64]:
    """Hand this process's shares to `take`; their checksums, [tensors, LANES]."""
    dtypes = {entry.name: getattr(torch, entry.dtype) for entry in places}
    parts = (Part(released.name, *shares.of(released), dtypes[released.name]) for released in tensors)
    found = take_all(parts, take)
    return np.stack([found[t.name].lanes if t.name in found else np.zeros(LANES, np.uint64) for t in tensors])


def _texts(tensors: Sequence[Released], lanes: Sequence[NDArray[np.uint64]]) -> dict[str, str]:
    total = np.stack(lanes).sum(axis=0, dtype=np.uint64)
    return {released.name: str(Checksum(row)) for released, row in zip(tensors, total, strict=True)}
