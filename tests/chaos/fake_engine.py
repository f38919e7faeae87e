"""An engine by hand at the seam of the replica service: weights that say which version they are, tokens that show it.

Version number n of a run has the element 1000 n + i at place i of every tensor, so whoever reads the weights knows
what they are, element by element. A token is the version that the engine names and what it read at that moment.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from omni_rl.errors import SlabError
from omni_rl.sync.digest import checksums
from omni_rl.sync.manifest import Entry, Manifest, arrange
from omni_rl.sync.replica import InFlight, Proof, SlabRef
from omni_rl.sync.slab import OpenSlabs, Slab
from omni_rl.sync.version import WeightVersion

RUN = "chaos"
PLACES: tuple[Entry, ...] = arrange({"embed": ("int64", (32, 8)), "head": ("int64", (64,)), "norm": ("int64", (16,))})
STEP_SECONDS = 0.002


def weights(number: int) -> dict[str, torch.Tensor]:
    return {
        entry.name: (1000 * number + torch.arange(entry.elements, dtype=torch.int64)).reshape(entry.shape)
        for entry in PLACES
    }


@dataclass(frozen=True)
class Token:
    """`held`: the version numbers that the weights' elements belonged to; [-1] if one was not of any."""

    version: str
    held: list[int]

    def is_right(self) -> bool:
        return self.held == [WeightVersion.parse(self.version).number]


@dataclass(frozen=True)
class NumberSource:
    """Weights number `number`. `seconds` apart from tensor to tensor; `fails_at` raises before that tensor."""

    number: int
    seconds: float = 0.0

    def fill(self, slab: Slab) -> Manifest:
        tensors = weights(self.number)
        with slab.writing(PLACES):
            written = {}
            for name, tensor in tensors.items():
                time.sleep(self.seconds)
                written[name] = str(slab.write(name, tensor))
            manifest = Manifest.seal(PLACES, written, run=RUN, attempt=1, number=self.number)
            slab.seal(manifest)
        return manifest


@dataclass
class Faults:
    """What goes wrong in this engine, set from outside while it runs. `delay`: seconds before each apply and verify."""

    delay: float = 0.0
    skip_tensor: str | None = None
    swap_in: str | None = None
    flip_after_apply: bool = False
    times: int = 1


@dataclass
class FakeEngine:
    """`weight_version` is the one of `number` when it starts, as if it had loaded a checkpoint."""

    number: int = 0
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self._held = weights(self.number)
        self._slabs = OpenSlabs()
        self._left: dict[str, int] = {}
        self._tokens: dict[str, list[Token]] = {}
        self._count = 0
        manifest = Manifest.seal(PLACES, checksums(self._held), run=RUN, attempt=1, number=self.number)
        self.weight_version = str(manifest.version)

    @property
    def busy(self) -> bool:
        return bool(self._left)

    def submit(self, tokens: Sequence[int]) -> list[str]:
        names = []
        for count in tokens:
            self._count += 1
            names.append(str(self._count))
            self._left[names[-1]] = count
            self._tokens[names[-1]] = []
        return names

    def step(self) -> dict[str, Any]:
        time.sleep(STEP_SECONDS)
        finished = {}
        for name in list(self._left):
            self._tokens[name].append(Token(self.weight_version, self._read()))
            self._left[name] -= 1
            if not self._left[name]:
                del self._left[name]
                finished[name] = self._tokens.pop(name)
        return finished

    def apply(self, slab: SlabRef, mode: InFlight, *, pushed: bool = False) -> None:
        time.sleep(self.faults.delay)
        if pushed:
            return
        for name, tensor in self._sealed(slab).tensors().items():
            if name == self.faults.skip_tensor and self._strikes():
                continue
            self._held[name].copy_(tensor)
        flat = self._held[self.faults.swap_in or "head"].view(-1)
        if self.faults.swap_in and self._strikes():
            flat[[3, 5]] = flat[[5, 3]]
        if self.faults.flip_after_apply and self._strikes():
            flat[7] ^= 1 << 40

    def verify(self, slab: SlabRef) -> Proof:
        time.sleep(self.faults.delay)
        sealed = self._sealed(slab)
        damaged = [f"{name}: wrong checksum" for name in sealed.check()]
        wrong = [
            f"{name}: element {int((self._held[name] != tensor).view(-1).nonzero()[0])} differs"
            for name, tensor in sealed.tensors().items()
            if not torch.equal(self._held[name], tensor)
        ]
        total = sum(entry.elements for entry in PLACES)
        nbytes = sum(entry.nbytes for entry in PLACES)
        return Proof(slab.version, len(PLACES), nbytes, total - len(wrong), total, (*damaged, *wrong))

    def serve_as(self, version: str) -> None:
        self.weight_version = version

    def score(self, probe: Any) -> Any:
        return [Token(self.weight_version, self._read())]

    def close(self) -> None:
        self._slabs.close()

    def _sealed(self, slab: SlabRef) -> Slab:
        opened = self._slabs.at(Path(slab.path))
        if str(opened.sealed().version) != slab.version:
            raise SlabError(f"{slab.path} holds {opened.sealed().version}, not {slab.version}")
        return opened

    def _read(self) -> list[int]:
        held = set()
        for tensor in self._held.values():
            flat = tensor.view(-1)
            bases = set((flat - torch.arange(len(flat))).tolist())
            held |= {base // 1000 if base % 1000 == 0 else -1 for base in bases}
        return sorted(held)

    def _strikes(self) -> bool:
        """Whether the fault happens this time; each happens `times` times."""
        if not self.faults.times:
            return False
        self.faults.times -= 1
        return True
