"""Turns fingerprints into the bodies that are sent to the coordinator."""

import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from omni_rl.agent import summed
from omni_rl.agent.fingerprint import Fingerprint
from omni_rl.agent.workers import WorkerParts
from omni_rl.api.updates import MAX_NAMED, MAX_PARTS, Adapter, AnnouncementBody, HeldPart, Sum

Sums = dict[str, tuple[Fingerprint, ...]]
"""The parts of a model by name, each with fingerprints in one or several dtypes."""


class AdapterSums(NamedTuple):
    """A LoRA adapter: its rank, the last names of the modules that it adapts (`q_proj`), the Frobenius norm of all its
    matrices together, and fingerprints of each A and of each B with the scale multiplied in."""

    name: str
    rank: int
    targets: tuple[str, ...]
    norm: float
    parts: Sums

    @classmethod
    def of(cls, name: str, rank: int, parts: Sums) -> "AdapterSums":
        """Return an adapter by the fingerprints of its matrices, `...lora_A` and `...lora_B`."""
        targets = tuple(sorted({part.split(".")[-2] for part in parts}))
        norm = sum(one.squares for each in parts.values() for one in each) ** 0.5
        return cls(name, rank, targets, norm, parts)


def sum_body(one: Fingerprint) -> Sum:
    """Return the body of one fingerprint."""
    return Sum(one.dtype, one.elements, f"{one.hashes:016x}", one.squares, one.nonfinite)


def adapter_body(one: AdapterSums) -> Adapter:
    """Return the body of an adapter's fingerprints."""
    parts = {name: tuple(map(sum_body, sums)) for name, sums in one.parts.items()}
    return Adapter(name=one.name, rank=one.rank, targets=one.targets[:MAX_NAMED], norm=one.norm, parts=parts)


def held_parts(worker: WorkerParts) -> dict[str, HeldPart]:
    """Return an engine worker's parts as it reports them after an update. If there are more than `MAX_PARTS`, the
    experts of each layer are added up to one part."""
    if len(worker.parts) > MAX_PARTS:
        worker = summed.of_worker(worker)
    changed = worker.parts.keys() if worker.changed is None else worker.changed
    return {name: HeldPart(sum_body(one.sum), one.shard, name in changed) for name, one in worker.parts.items()}


def announcement(
    sums: Mapping[str, tuple[Fingerprint, ...]],
    adapters: Iterable[AdapterSums] = (),
    *,
    at: float | None = None,
    engines: tuple[str, ...] = (),
    session: str = "",
) -> AnnouncementBody:
    """Return what a trainer says of its weights before it sends them.

    `at` is in Unix seconds; None: now. `session` names this start of the trainer, since another start may number its
    updates from the first again. If there are more than `MAX_PARTS` parts, the experts of each layer are added up.
    """
    if len(sums) > MAX_PARTS:
        sums = summed.announced(sums)
    return AnnouncementBody(
        session=session,
        at=time.time() if at is None else at,
        parts={name: tuple(map(sum_body, each)) for name, each in sums.items()},
        adapters=tuple(map(adapter_body, adapters)),
        engines=engines,
    )
