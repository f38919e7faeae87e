"""Finds out where an engine's own loader puts every released element, by loading tensors that hold their positions."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from omni_rl.counting import counted
from omni_rl.errors import LayoutError
from omni_rl.sync.layout.blocks import ElementRun, StridedBlock, blocks, runs
from omni_rl.sync.layout.codes import BASE, BITS, UNDECODED, CodedTensors, chunks, decode, digits_needed, first_numbers
from omni_rl.sync.layout.compare import bits
from omni_rl.sync.layout.findings import listed
from omni_rl.sync.layout.recorded import Recorded, record
from omni_rl.sync.layout.storages import Storage, storages
from omni_rl.sync.released import TensorSpec

Load = Callable[[Mapping[str, torch.Tensor]], None]
"""Loads released tensors into the model as the engine's loader does; it asks for each tensor once."""

# A storage in more pieces than this is shuffled rather than sliced, and would not copy at memory speed.
MAX_BLOCKS = 4096


def derive(
    model: nn.Module, specs: Mapping[str, TensorSpec], load: Load
) -> tuple[tuple[Storage, ...], tuple[StridedBlock, ...], tuple[Recorded, ...]]:
    """Return the storages of `model`, the blocks that released elements fill, and the elements that no released tensor
    fills.

    The model holds codes afterwards. Needs memory for a copy of the model and for 4 bytes an element. Raises
    `LayoutError`, naming the parameter or the released tensor, if the loader does what blocks cannot describe.
    """
    found = storages(model)
    first = np.array(first_numbers(specs))
    numbers, transforms = _numbers(found, specs, load)
    pieces = [list(runs(n, t, first)) for n, t in zip(numbers, transforms, strict=True)]
    for storage, several in zip(found, pieces, strict=True):
        _refuse_misfits(storage, several, specs)
    _refuse_lost(pieces, specs)
    joined = []
    for index, several in enumerate(pieces):
        joined.append(list(blocks(index, several)))
        if len(joined[-1]) > MAX_BLOCKS:
            raise LayoutError(
                f"engine parameter {found[index].spec.name} is filled in {len(joined[-1])} pieces: its format is "
                "shuffled, which the layout map does not cover. Serve it unquantised and plain"
            )
    ordered = sorted((block for several in joined for block in several), key=lambda block: block.tensor)
    recorded = [record(index, found[index], torch.from_numpy(n < 0)) for index, n in enumerate(numbers)]
    return found, tuple(ordered), tuple(one for several in recorded for one in several)


def _numbers(
    found: Sequence[Storage], specs: Mapping[str, TensorSpec], load: Load
) -> tuple[list[NDArray[np.signedinteger]], list[NDArray[np.int8]]]:
    """Return for each storage the number of the released element in every place (-1: none), and the transform it came
    through."""
    load(CodedTensors(specs, digit=0))
    before = [storage.flat.cpu().clone() for storage in found]
    load(CodedTensors(specs, digit=0, shift=BASE // 2))
    elements = first_numbers(specs)[-1]
    dtype = torch.int32 if elements < 2**31 else torch.int64
    numbers = [torch.empty(storage.flat.numel(), dtype=dtype) for storage in found]
    transforms = [torch.empty(storage.flat.numel(), dtype=torch.int8) for storage in found]
    for storage, old, number, transform in zip(found, before, numbers, transforms, strict=True):
        for part in chunks(old.numel()):
            held = storage.flat[part].cpu()
            code, shifted = decode(old[part]), decode(held)
            written = bits(old[part]) != bits(held)
            # The second code is half a round further than the first, and came through the same transform.
            coded = (code ^ shifted == BASE // 2) & (code != UNDECODED) & (shifted != UNDECODED)
            _refuse_at(storage, part.start, written & ~coded)
            number[part] = torch.where(written, code & BASE - 1, -1)
            transform[part] = torch.where(written, code >> BITS, 0)
    del before
    for digit in range(1, digits_needed(elements)):
        load(CodedTensors(specs, digit))
        for storage, number in zip(found, numbers, strict=True):
            for part in chunks(number.numel()):
                code, written = decode(storage.flat[part].cpu()), number[part] >= 0
                _refuse_at(storage, part.start, written & (code == UNDECODED))
                number[part] += ((code & BASE - 1) * written).to(dtype) << BITS * digit
    return [number.numpy() for number in numbers], [transform.numpy() for transform in transforms]


def _refuse_at(storage: Storage, start: int, wrong: torch.Tensor) -> None:
    if wrong.any():
        raise LayoutError(
            f"engine parameter {storage.spec.name} holds values that no released element explains, "
            f"the first at element {start + int(wrong.nonzero()[0])}: its format is not covered. Serve it "
            "unquantised and plain"
        )


def _refuse_misfits(storage: Storage, pieces: list[ElementRun], specs: Mapping[str, TensorSpec]) -> None:
    """Refuse a storage that is too narrow for a tensor's real values: the codes are small and would come through it as
    well."""
    named_specs = list(specs.items())
    for tensor in sorted({run.tensor for run in pieces}):
        name, spec = named_specs[tensor]
        if torch.promote_types(spec.dtype, storage.spec.dtype) != storage.spec.dtype:
            raise LayoutError(
                f"engine parameter {storage.spec.name} ({storage.spec.dtype}) is loaded from {name} ({spec.dtype}): "
                "sent values would be rounded by the engine. Send the engine's dtype"
            )


def _refuse_lost(pieces: Sequence[Sequence[ElementRun]], specs: Mapping[str, TensorSpec]) -> None:
    """Refuse released elements that land nowhere: the trainer computes with each of them, so the engine must too."""
    landed = {name: np.zeros(torch.Size(spec.shape).numel(), np.bool_) for name, spec in specs.items()}
    names = list(specs)
    for run in (run for several in pieces for run in several):
        landed[names[run.tensor]][run.source : run.source + run.length] = True
    lost = [
        f"{name} ({int((~mask).sum())} of {counted(mask.size, 'element')})"
        for name, mask in landed.items()
        if not mask.all()
    ]
    if lost:
        raise LayoutError(
            f"{counted(len(lost), 'released tensor does', 'released tensors do')} not reach the engine, which would "
            f"compute without them: {listed(lost)}"
        )
