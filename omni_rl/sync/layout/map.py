"""The layout map says for every element of an engine which released element it must equal, or which value it must
hold."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby

import numpy as np
import torch
from torch import nn

from omni_rl.counting import counted
from omni_rl.errors import LayoutError
from omni_rl.sync.checksum import Checksum
from omni_rl.sync.layout import derive as derivation
from omni_rl.sync.layout.blocks import StridedBlock, Transform
from omni_rl.sync.layout.compare import differing, same_bits
from omni_rl.sync.layout.derive import Load
from omni_rl.sync.layout.findings import Coverage, Mismatch, listed, named
from omni_rl.sync.layout.kinds import Kind
from omni_rl.sync.layout.moves import Moves
from omni_rl.sync.layout.random_weights import RandomTensors
from omni_rl.sync.layout.recorded import Recorded
from omni_rl.sync.layout.storages import StorageSpec, storages
from omni_rl.sync.pieces import in_threads, totals
from omni_rl.sync.released import TensorSpec

# In one load a wrong element could hold the right value by chance, in bfloat16 once in some thousand; not in two.
FRESH_LOADS = 2
MIN_ROW_BYTES = 4096  # below, all rows at once are faster


@dataclass(frozen=True)
class LayoutMap:
    """The map of one engine. `derive` or `file.read` makes it; `omni_rl.sync.layout.prepare` calls either and checks
    the map."""

    specs: Mapping[str, TensorSpec]
    storages: tuple[StorageSpec, ...]
    blocks: tuple[StridedBlock, ...]
    recorded: tuple[Recorded, ...]

    @classmethod
    def derive(cls, model: nn.Module, specs: Mapping[str, TensorSpec], load: Load) -> "LayoutMap":
        """Return the map of `model`, whose loader is `load`; `specs` are the released tensors as they are sent.

        The model holds neither old nor new weights afterwards: load some. Raises `LayoutError`, naming the parameter,
        for a format that the map does not cover.
        """
        found, blocks, recorded = derivation.derive(model, specs, load)
        return cls(dict(specs), tuple(storage.spec for storage in found), blocks, recorded)

    def coverage(self) -> Coverage:
        """Return the number of elements of each kind, and of all that the engine's storages hold."""
        count = dict.fromkeys(Kind, 0)
        for block in self.blocks:
            count[block.kind] += block.elements
        for recorded in self.recorded:
            count[recorded.kind] += recorded.values.numel()
        return Coverage(**{kind.value: count[kind] for kind in Kind}, total=sum(s.elements for s in self.storages))

    def apply(self, tensors: Mapping[str, torch.Tensor], model: nn.Module) -> None:
        """Copy released tensors to where the engine's loader would put them.

        Raises `LayoutError` before anything is written if the tensors or the engine are not the map's. Elements with
        recorded values are not written: if one was damaged, `verify` must find it.
        """
        self._check_names(tensors)
        for name, tensor in tensors.items():
            self._check_spec(name, tensor)
        sources = [tensors[name].detach().reshape(-1) for name in self.specs]
        deque(in_threads(self._copies(sources, self._flats(model))), maxlen=0)

    def verify(self, tensors: Mapping[str, torch.Tensor], model: nn.Module) -> tuple[Mismatch, ...]:
        """Read every byte of the engine and return where it differs from what `tensors` and the recorded values say.

        Raises `LayoutError` if the tensors or the engine's storages are not the map's.
        """
        self._check_names(tensors)
        flats = self._flats(model)
        wrong: list[Mismatch] = []
        for name, blocks in self._by_tensor():
            self._check_spec(name, tensors[name])
            wrong += self._released(name, tensors[name].detach().reshape(-1), blocks, flats)
        return (*wrong, *self._kept(flats))

    def prove(
        self, tensors: Mapping[str, torch.Tensor], checksums: Mapping[str, str], model: nn.Module
    ) -> tuple[Mismatch, ...]:
        """Read every byte of the engine and compare it with the checksums that the source computed of what it sent.

        Finds what `verify` finds, and also what was damaged before the engine got it, at the cost of one read:
        `tensors`, which the engine was given, are looked at only to tell which elements are wrong, and where a loader
        did more than copy. Raises `LayoutError` if the tensors or the engine's storages are not the map's.
        """
        self._check_names(tensors)
        flats = self._flats(model)
        names = list(self.specs)
        held = {names[tensor]: str(total) for tensor, total in totals(in_threads(self._once.checksums(flats))).items()}
        wrong: list[Mismatch] = []
        for name, blocks in self._by_tensor():
            self._check_spec(name, tensors[name])
            if held.get(name) == checksums[name]:
                continue
            source = tensors[name].detach().reshape(-1)
            found = list(self._released(name, source, blocks, flats))
            if not found and str(Checksum.of_tensor(source)) != checksums[name]:
                found = [
                    Mismatch(name, self.storages[block.storage].name, block.kind, None, block.elements)
                    for block in blocks
                ]
            wrong += found
        return (*wrong, *self._kept(flats))

    def check_fresh(self, model: nn.Module, load: Load, seed: int = 0) -> None:
        """Load random weights by the engine's own loader and compare them with what the map says of them.

        Raises `LayoutError` naming what differs from the map. The model holds random weights afterwards.
        """
        self.check_complete()
        for number in range(FRESH_LOADS):
            tensors = RandomTensors(self.specs, seed + number)
            load(tensors)
            if wrong := self.verify(tensors, model):
                raise LayoutError(f"the layout map is wrong: a fresh load differs from it: {named(wrong)}")

    def check_complete(self) -> None:
        """Raise `LayoutError` unless every element of every storage is in exactly one block or recorded region, every
        released element is in some block, and nothing reaches beyond a tensor."""
        landed = [np.zeros(torch.Size(spec.shape).numel(), np.bool_) for spec in self.specs.values()]
        covered = [np.zeros(spec.elements, np.uint8) for spec in self.storages]
        for block in self.blocks:
            if not block.fits(landed[block.tensor].size, covered[block.storage].size):
                raise LayoutError(f"the layout map is wrong: {block} reaches beyond its tensor")
            block.of_tensor(torch.from_numpy(landed[block.tensor])).fill_(True)
            block.of_storage(torch.from_numpy(covered[block.storage])).add_(1)
        for recorded in self.recorded:
            recorded.of_storage(torch.from_numpy(covered[recorded.storage])).add_(1)
        for spec, times in zip(self.storages, covered, strict=True):
            if wrong := int((times != 1).sum()):
                raise LayoutError(
                    f"the layout map does not cover {counted(wrong, 'element')} of {spec.name} exactly once"
                )
        if lost := [name for name, mask in zip(self.specs, landed, strict=True) if not mask.all()]:
            raise LayoutError(f"the layout map leaves out elements of {listed(lost)}")

    def _copies(self, sources: Sequence[torch.Tensor], flats: Sequence[torch.Tensor]) -> Iterator[Callable[[], object]]:
        """Yield tasks that write flat released tensors into the engine."""
        if all(tensor.is_cpu for tensor in (*sources, *flats)):
            yield from self._moves.copies(sources, flats)
            blocks = self._other_blocks
        else:
            blocks = list(self.blocks)
        for block in blocks:
            flat = flats[block.storage]
            values = block.of_tensor(sources[block.tensor])
            if block.transform is not Transform.COPY:
                values = block.transform(values, flat.dtype)
            yield partial(block.of_storage(flat).copy_, values)

    def _released(
        self, name: str, source: torch.Tensor, blocks: Sequence[StridedBlock], flats: Sequence[torch.Tensor]
    ) -> Iterator[Mismatch]:
        """Yield where the engine differs from `source`, the flat tensor that was released as `name`."""
        for block in blocks:
            flat = flats[block.storage]
            expected, held = block.transform(block.of_tensor(source), flat.dtype), block.of_storage(flat)
            if not same_bits(expected, held):
                places = block.places(differing(expected, held))
                yield Mismatch(name, self.storages[block.storage].name, block.kind, int(places[0]), len(places))

    def _kept(self, flats: Sequence[torch.Tensor]) -> Iterator[Mismatch]:
        """Yield where the engine differs from the recorded values."""
        for recorded in self.recorded:
            held = recorded.of_storage(flats[recorded.storage])
            values = recorded.values.to(held.device)
            if not same_bits(values, held):
                places = recorded.start + differing(values, held)
                parameter = self.storages[recorded.storage].name
                yield Mismatch(None, parameter, recorded.kind, int(places[0]), len(places))

    @cached_property
    def _moves(self) -> Moves:
        return Moves([block for block in self.blocks if self._is_move(block)], self._itemsizes)

    @cached_property
    def _other_blocks(self) -> list[StridedBlock]:
        return [block for block in self.blocks if not self._is_move(block)]

    @cached_property
    def _once(self) -> Moves:
        """The copies of those tensors of which the engine holds each element unchanged and exactly once."""
        whole = [
            blocks
            for name, blocks in self._by_tensor()
            if sum(block.elements for block in blocks) == torch.Size(self.specs[name].shape).numel()
            and all(map(self._is_move, blocks))
        ]
        return Moves([block for blocks in whole for block in blocks], self._itemsizes)

    @property
    def _itemsizes(self) -> list[int]:
        return [spec.dtype.itemsize for spec in self.specs.values()]

    @cached_property
    def _dtypes(self) -> list[torch.dtype]:
        return [spec.dtype for spec in self.specs.values()]

    def _is_move(self, block: StridedBlock) -> bool:
        """Return whether a copy of bytes does the block's work, in rows long enough for a call each."""
        dtype = self._dtypes[block.tensor]
        return (
            block.transform is Transform.COPY
            and self.storages[block.storage].dtype == dtype
            and (block.rows == 1 or block.length * dtype.itemsize >= MIN_ROW_BYTES)
        )

    def _by_tensor(self) -> Iterator[tuple[str, list[StridedBlock]]]:
        """Yield the blocks grouped by released tensor, in order: each tensor is looked up once."""
        names = list(self.specs)
        for tensor, blocks in groupby(self.blocks, key=lambda block: block.tensor):
            yield names[tensor], list(blocks)

    def _flats(self, model: nn.Module) -> list[torch.Tensor]:
        """Return the storages of `model`, found anew: a replaced parameter must be read where it is now."""
        found = storages(model)
        if differing_specs := set(self.storages) ^ {storage.spec for storage in found}:
            names = sorted({spec.name for spec in differing_specs})
            raise LayoutError(
                f"the engine is not the one that the layout map was made for: {listed(names)} differ in dtype, size or "
                "in what shares their storage. Derive the map again"
            )
        flats = {storage.spec.name: storage.flat for storage in found}
        return [flats[spec.name] for spec in self.storages]

    def _check_names(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if names := sorted(self.specs.keys() ^ tensors.keys()):
            raise LayoutError(
                f"missing or unexpected among the tensors to apply: {listed(names)}; send all, and no more"
            )

    def _check_spec(self, name: str, tensor: torch.Tensor) -> None:
        spec = self.specs[name]
        if TensorSpec(tensor.dtype, tuple(tensor.shape)) != spec:
            raise LayoutError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, not {spec.dtype} {list(spec.shape)}; send it as "
                "omni_rl.sync.released.ReleasedFormat.as_sent gives it"
            )
