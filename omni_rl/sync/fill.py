"""Writes weights into a slab: one process alone, or all processes of a sharded model together, each its own shards."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.sync.checksum import LANES, Checksum
from omni_rl.sync.group import ALONE, Group
from omni_rl.sync.manifest import Entry, Manifest, Origin, arrange, root_digest
from omni_rl.sync.parts import Shares
from omni_rl.sync.pieces import TensorPart, checksum_of, take_all
from omni_rl.sync.released import Released, ReleasedFormat
from omni_rl.sync.slab import Slab, written


def fill(
    slab: Slab | None,
    tensors: Sequence[Released],
    places: tuple[Entry, ...],
    *,
    run: str,
    attempt: int,
    number: int,
    origin: Origin,
    group: Group = ALONE,
    claim: str | None = None,
) -> Manifest:
    """Write `tensors` to their `places`, in the dtypes that those have, and seal the slab. Returns its manifest.

    `origin` says whose weights they are, and `claim` is the claim with which the slab was given to the writers.

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
        ticket = group.together(lambda: _begin(slab, places, claim) if group.first else "")[0]
        group.together(lambda: None if slab is None or group.first else slab.join(places, ticket))
        parts = group.together(
            lambda: _sums(shares, tensors, places, lambda name, part, start: _write(slab, name, part, start))
        )
        found = written(_totals(tensors, parts), places)
        manifest = Manifest.seal(
            places,
            found.checksums,
            run=run,
            attempt=attempt,
            number=number,
            nonfinite=found.nonfinite,
            origin=origin,
        )
        group.together(lambda: slab.seal(manifest) if slab is not None and group.first else None)
        return manifest
    finally:
        if slab is not None:
            slab.leave()


def digest(tensors: Sequence[Released], places: tuple[Entry, ...], *, group: Group = ALONE) -> str:
    """Return the digest of a slab filled with these tensors, without a slab; every process of `group` calls this."""
    return root_digest(checksums(tensors, places, group=group))


def checksums(tensors: Sequence[Released], places: tuple[Entry, ...], *, group: Group = ALONE) -> tuple[Entry, ...]:
    """Return the `places` with the checksums of `tensors`, without a slab; every process of `group` calls this."""
    shares = Shares(first=group.first)
    found = _totals(tensors, group.together(lambda: _sums(shares, tensors, places, checksum_of)))
    return tuple(replace(entry, checksum=str(found[entry.name])) for entry in places)


def places_of(tensors: Sequence[Released], dtype: torch.dtype, released: ReleasedFormat) -> tuple[Entry, ...]:
    """Return where a family's tensors lie in a slab when they are sent to an engine of `dtype`."""
    sent = {t.name: released.sent_dtype(t.name, t.dtype, dtype) for t in tensors}
    return arrange({t.name: (str(sent[t.name]).removeprefix("torch."), t.shape) for t in tensors})


def _begin(slab: Slab | None, places: tuple[Entry, ...], claim: str | None) -> str:
    assert slab is not None, "the first process of a source runs on the slab's host"
    return slab.begin(places, claim)


def _write(slab: Slab | None, name: str, part: torch.Tensor, start: int) -> Checksum:
    assert slab is not None, "only the first process contributes to a slab of another host"
    return slab.write(name, part, start)


def _sums(
    shares: Shares,
    tensors: Sequence[Released],
    places: tuple[Entry, ...],
    take: Callable[[str, torch.Tensor, int], Checksum],
) -> NDArray[np.uint64]:
    """Hand this process's shares to `take`; return what it found, [tensors, LANES + 2]: lanes of a checksum, counts of
    NaN and of infinite elements."""
    dtypes = {entry.name: getattr(torch, entry.dtype) for entry in places}
    parts = (TensorPart(released.name, *shares.of(released), dtypes[released.name]) for released in tensors)
    found = take_all(parts, take)
    none = Checksum.total(())
    return np.stack([_numbers(found.get(released.name, none)) for released in tensors])


def _numbers(share: Checksum) -> NDArray[np.uint64]:
    return np.append(share.lanes, np.array([share.nan, share.infinite], np.uint64))


def _totals(tensors: Sequence[Released], parts: Sequence[NDArray[np.uint64]]) -> dict[str, Checksum]:
    """Return each tensor's checksum by its name, from what each process found."""
    total = np.stack(parts).sum(axis=0, dtype=np.uint64)
    return {
        released.name: Checksum(row[:LANES], int(row[LANES]), int(row[LANES + 1]))
        for released, row in zip(tensors, total, strict=True)
    }
