"""Defines faults of a sync: what it leaves out, with its proof asked and past it. A fault takes the worker that the
sync writes to, and a seed."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch

from omni_rl.consistency.actions import Cause
from omni_rl.sync.replica import Proof
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault, Put


def before_verify(damage: Put, worker: Any, seed: int) -> None:
    """Damage what the next sync writes, as soon as it is written."""

    def write(original: Any, sealed: Any) -> None:
        original(sealed)
        damage(worker, seed)

    patches.once(worker.weights, "write", write)


def vouch(worker: Any) -> None:
    """Let the next proof find nothing, as a check of names and success alone does."""

    def prove(original: Any, sealed: Any) -> Proof:
        return Proof(sealed.version, len(sealed.tensors), 0, worker.weights.elements, worker.weights.elements)

    patches.once(worker.weights, "prove", prove)


def past_proof(put: Put, worker: Any, seed: int) -> None:
    """Have the next sync go wrong, and its proof find nothing."""
    put(worker, seed)
    vouch(worker)


def skip(worker: Any, seed: int) -> None:
    """Have the next sync write nothing."""
    patches.once(worker.weights, "write", lambda original, sealed: None)


def half(worker: Any, seed: int) -> None:
    """Have the next sync end half way."""
    leave_out(worker, lambda names: names[len(names) // 2 :])


def leave_out(worker: Any, chosen: Callable[[list[str]], list[str]]) -> None:
    """Have the next sync leave the chosen ones of its tensors as they were."""

    def write(original: Any, sealed: Any) -> None:
        kept = [tensor.clone() for tensor in _flats(worker)]
        original(sealed)
        stale = set(chosen(list(sealed.tensors)))
        names = list(worker.weights._layout.specs)
        for block in worker.weights._layout.blocks:
            if names[block.tensor] in stale:
                block.of_storage(_flats(worker)[block.storage]).copy_(block.of_storage(kept[block.storage]))

    patches.once(worker.weights, "write", write)


def _flats(worker: Any) -> list[torch.Tensor]:
    flats: list[torch.Tensor] = worker.weights._layout._flats(worker.get_model())
    return flats


def never_written(name: str, worker: Any, seed: int) -> None:
    """Have the next sync never write tensors whose released name has `name` in it."""
    leave_out(worker, lambda names: [found for found in names if name in found])


def _goes_wrong(name: str, put: Put, replicas: Literal["all", "last"] = "all") -> tuple[Fault, Fault]:
    """Return two faults of a sync that leaves something out: once with its proof, once past it."""
    vouched = partial(past_proof, put)
    causes = (Cause.STALE_WEIGHTS,)
    return (
        Fault(name, causes, patches.in_worker(put), "before VERIFY", replicas=replicas, proven=True),
        Fault(name, causes, patches.in_worker(vouched), "vouched for", replicas=replicas, proven=True),
    )


FAULTS = (
    *_goes_wrong("one replica stale", skip, "last"),
    *_goes_wrong("sync skipped", skip),
    *_goes_wrong("mixer.D not written", partial(never_written, ".mixer.D")),
    *_goes_wrong("projector left stale", partial(never_written, "mlp1.")),
    *_goes_wrong("half an update", half),
)
