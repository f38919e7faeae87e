"""Holds the weights of a running engine: which they are, how new ones get in, and the proof that they did."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vllm

from omni_rl.consistency.evidence import WrongTensor
from omni_rl.errors import LayoutError, SlabError
from omni_rl.models.families import family_of
from omni_rl.sync import layout
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.digest import weights_digest
from omni_rl.sync.manifest import Origin
from omni_rl.sync.replica import Proof, SlabRef
from omni_rl.sync.slab import OpenSlabs


@dataclass(frozen=True)
class SealedWeights:
    """The weights in a sealed slab. `tensors` are views of its file, valid until that is filled anew; `origin` says
    where the weights come from, if that is known."""

    version: str
    origin: Origin | None
    checksums: Mapping[str, str]
    tensors: Mapping[str, torch.Tensor]


class ServedWeights:
    """The weights of one running engine: what it was loaded from, and where every byte of an update lands in it."""

    def __init__(self, model: Any, checkpoint: Path, dtype: torch.dtype) -> None:
        """Map the weights of `model`, which has just loaded `checkpoint`. Raises `LayoutError` for an engine that no
        map covers."""
        tensors = CheckpointTensors(checkpoint, dtype, family_of(checkpoint).released)
        self._model = model
        self._slabs = OpenSlabs()
        self.digest = weights_digest(tensors)
        self.parameters = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
        served = {
            "vllm": vllm.__version__,
            "config": json.loads((checkpoint / "config.json").read_text()),
            "dtype": str(dtype),
        }
        self._layout = layout.prepare(model, tensors, lambda given: write_in_place(model, given), served)
        self._seal = layout.MapSeal(self._layout)
        self.elements = self._layout.coverage().total

    def read(self, slab: SlabRef) -> SealedWeights:
        """Return the weights in a slab. Raises `SlabError` unless they are sealed and are the version asked for."""
        opened = self._slabs.at(Path(slab.path))
        manifest = opened.sealed()
        if str(manifest.version) != slab.version:
            raise SlabError(f"{slab.path} holds {manifest.version}, not {slab.version}; its source has filled it anew")
        checksums = {entry.name: entry.checksum for entry in manifest.entries}
        return SealedWeights(slab.version, manifest.origin, checksums, opened.tensors())

    def write(self, sealed: SealedWeights) -> None:
        """Copy the weights into the engine. Raises `LayoutError`, with nothing written, if they are not this engine's
        set, or the layout map is not the one that was confirmed."""
        if broken := self._seal.broken(self._layout):
            raise LayoutError("; ".join(map(_broken, broken)))
        self._layout.apply(sealed.tensors, self._model)

    def prove(self, sealed: SealedWeights) -> Proof:
        """Read every byte of the engine, and compare it with the checksums that the source of the weights computed.

        The checksums vouch for more than the slab does: damage between the source and the engine shows as well. A
        layout map that is not the one that was confirmed proves nothing.
        """
        if broken := self._seal.broken(self._layout):
            return self._proof(sealed, 0, tuple(map(_broken, broken)))
        wrong = self._layout.prove(sealed.tensors, sealed.checksums, self._model)
        proven = self.elements - sum(mismatch.elements for mismatch in wrong)
        return self._proof(sealed, proven, tuple(map(str, wrong)))

    def wrong(self, slab: SlabRef, before: SlabRef | None) -> tuple[WrongTensor, ...]:
        """Return the tensors that the engine does not hold as the slab has them.

        `before` is the slab of earlier weights, if it still has them: tensors that the engine holds as in that slab are
        stale. Raises `SlabError` if `slab` is not sealed or is of another version than it is said to be.
        """
        sealed = self.read(slab)
        apart = self._layout.prove(sealed.tensors, sealed.checksums, self._model)
        elements: dict[str, int] = {}
        for mismatch in apart:
            name = mismatch.tensor or mismatch.parameter
            elements[name] = elements.get(name, 0) + mismatch.elements
        stale = self._as_before(elements, before) if apart and before is not None else set()
        return tuple(WrongTensor(name, count, name in stale) for name, count in elements.items())

    def _as_before(self, names: Iterable[str], before: SlabRef) -> set[str]:
        try:
            earlier = self.read(before)
        except SlabError:
            return set()  # it is being filled anew
        apart = self._layout.verify(earlier.tensors, self._model)
        return set(names) - {mismatch.tensor or mismatch.parameter for mismatch in apart}

    def _proof(self, sealed: SealedWeights, proven: int, mismatches: tuple[str, ...]) -> Proof:
        nbytes = sum(tensor.nbytes for tensor in sealed.tensors.values())
        return Proof(sealed.version, len(sealed.tensors), nbytes, proven, self.elements, mismatches)


def _broken(name: str) -> str:
    return f"{name}: its entry in the layout map is not the one that a fresh load confirmed"


def write_in_place(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy released tensors into the engine's parameters with the engine's own loader, as a fresh load would."""
    with torch.no_grad():
        model.load_weights(iter(tensors.items()))
