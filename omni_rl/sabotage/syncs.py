"""Faults of a sync: what it leaves out, with its proof asked and past it. A fault takes the engine and a seed."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch

from omni_rl.consistency.actions import Cause
from omni_rl.sabotage import patches
from omni_rl.sabotage.fault import Fault, Put
from omni_rl.sync.replica import Proof


def before_verify(damage: Put, engine: Any, seed: int) -> None:
    """Damage what the next sync writes, as soon as it is written."""

    def write(original: Any, sealed: Any) -> None:
        original(sealed)
        damage(engine, seed)

    patches.once(engine._weights, "write", write)


def vouch(engine: Any) -> None:
    """Let the next proof find nothing, as a check of names and success alone does."""

    def prove(original: Any, sealed: Any) -> Proof:
        return Proof(sealed.version, len(sealed.tensors), 0, engine._weights.elements, engine._weights.elements)

    patches.once(engine._weights, "prove", prove)


def skip(engine: Any, seed: int) -> None:
    """The next sync writes nothing."""
    patches.once(engine._weights, "write", lambda original, sealed: None)


def half(engine: Any, seed: int) -> None:
    """The next sync ends half way."""
    leave_out(engine, lambda names: names[len(names) // 2 :])


def leave_out(engine: Any, chosen: Callable[[list[str]], list[str]]) -> None:
    """The next sync leaves the chosen of its tensors as they were."""

    def write(original: Any, sealed: Any) -> None:
        kept = [tensor.clone() for tensor in _flats(engine)]
        original(sealed)
        stale = set(chosen(list(sealed.tensors)))
        names = list(engine._weights._layout.specs)
        for block in engine._weights._layout.blocks:
            if names[block.tensor] in stale:
                block.of_storage(_flats(engine)[block.storage]).copy_(block.of_storage(kept[block.storage]))

    patches.once(engine._weights, "write", write)


def _flats(engine: Any) -> list[torch.Tensor]:
    flats: list[torch.Tensor] = engine._weights._layout._flats(engine.model)
    return flats


def never_written(name: str, engine: Any, seed: int) -> None:
    """The next sync never writes tensors whose released name has `name` in it."""
    leave_out(engine, lambda names: [found for found in names if name in found])


def _goes_wrong(name: str, put: Put, replicas: Literal["all", "last"] = "all") -> tuple[Fault, Fault]:
    """A sync that leaves something out: once with its proof, once past it."""

    def vouched(engine: Any, seed: int) -> None:
        put(engine, seed)
        vouch(engine)

    causes = (Cause.STALE_WEIGHTS,)
    return (
        Fault(name, causes, put, "before VERIFY", replicas=replicas, proven=True),
        Fault(name, causes, vouched, "vouched for", replicas=replicas, proven=True),
    )


FAULTS = (
    *_goes_wrong("one replica stale", skip, "last"),
    *_goes_wrong("sync skipped", skip),
    *_goes_wrong("mixer.D not written", partial(never_written, ".mixer.D")),
    *_goes_wrong("projector left stale", partial(never_written, "mlp1.")),
    *_goes_wrong("half an update", half),
)
