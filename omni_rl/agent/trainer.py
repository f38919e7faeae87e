"""Fingerprints a trainer's own tensors, where they are, over all of its ranks.

Sharded parameters (FSDP2's DTensors) are never gathered: each rank hashes what it holds, and the sums are added.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import distributed, nn

from omni_rl.agent.bodies import AdapterSums, Sums
from omni_rl.agent.comparison import ROUNDED
from omni_rl.agent.fingerprint import MODULUS, Fingerprint
from omni_rl.agent.names import canonical
from omni_rl.agent.tensors import fingerprint, name_of
from omni_rl.errors import TrainerDeadError

Rows = dict[tuple[str, str], Fingerprint]
"""A rank's fingerprints by part and dtype. All ranks have the same keys, whatever they hold of each part."""
_OF = "\0"
"""The sign between an adapter's name and a part's while the parts of all adapters are added over the ranks together."""
SMALL = 1 << 20
"""The number of elements up to which a tensor that is no expert's gets one more fingerprint: of its values rounded to a
coarser dtype and back. An engine that holds those values was damaged by such a cast, as routers, their biases, norms
and decays have been."""


class Box(NamedTuple):
    """What this rank holds of a tensor of `shape`: `values`, whose first element stands at `start` in the whole tensor.
    `counted` is true on one rank of those that hold the same elements, so that the sum over ranks has them once."""

    values: torch.Tensor
    start: tuple[int, ...]
    shape: tuple[int, ...]
    counted: bool = True


def fingerprints(
    model: nn.Module, *, dtype: torch.dtype | None = None, merged: bool = False, group: Any = None
) -> Sums:
    """Return fingerprints of a model's parameters and persistent buffers, by name, each in its own dtype and in
    `dtype`, the engine's. With `merged`, a layer that PEFT adapts counts as base + delta, which is what trainers that
    merge adapters send.

    This is a collective of all ranks of `group` if torch.distributed is initialised; every rank gets the sums. Adapters
    are left out: see `adapters`.

    Raises `TrainerDeadError` where another rank failed, or the ranks hold parts of other names or dtypes.
    """
    return of_tensors(_tensors(model, merged), dtype=dtype, group=group)


def of_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], *, dtype: torch.dtype | None = None, group: Any = None
) -> Sums:
    """Return fingerprints of named tensors, as `fingerprints` does of a model's; each may be a DTensor. Fused experts
    are fingerprinted expert by expert."""
    return _by_part(_over_ranks(lambda: _rows(_boxes(tensors, group), dtype), group))


def of_shares(
    shares: Iterable[tuple[str, torch.Tensor, Sequence[int]]], *, dtype: torch.dtype | None = None, group: Any = None
) -> Sums:
    """Return fingerprints of tensors that each rank holds only a share of, as `fingerprints` does of a model's.

    A share is a name, the rank's own elements, which no other rank has, and the whole tensor's shape. Every rank lists
    every tensor.
    """
    boxes = ((name, Box(values, (0,) * len(shape), tuple(shape))) for name, values, shape in shares)
    return _by_part(_over_ranks(lambda: _rows(boxes, dtype), group))


def of_whole(name: str, value: torch.Tensor, *, dtype: torch.dtype | None = None) -> Sums:
    """Return fingerprints of one tensor that this process has whole; this is no collective."""
    return _by_part(_rows([(name, Box(value.detach(), (0,) * value.ndim, tuple(value.shape)))], dtype))


def _boxes(tensors: Iterable[tuple[str, torch.Tensor]], group: Any) -> Iterator[tuple[str, Box]]:
    for name, value in tensors:
        yield name, _local(value, group)


def _rows(boxes: Iterable[tuple[str, Box]], dtype: torch.dtype | None) -> Rows:
    found: Rows = {}
    boxes = list(boxes)
    shapes = {name: box.shape for name, box in boxes}
    for name, box in boxes:
        small = math.prod(box.shape) <= SMALL and ".experts." not in name
        for part, piece in _parts(name, box, shapes):
            for one in _in_dtypes(piece, dtype, small, _decay if name.endswith("A_log") else _as_it_is):
                # A rank that holds a copy of what another counts still lists the part: all ranks add the same rows.
                own = one if box.counted else Fingerprint(one.dtype, 0, 0)
                key = (part, one.dtype)
                found[key] = found[key] + own if key in found else own
    return found


def _by_part(rows: Rows) -> Sums:
    sums: dict[str, list[Fingerprint]] = {}
    for (part, _), one in rows.items():
        sums.setdefault(part, []).append(one)
    return {part: tuple(each) for part, each in sums.items()}


def _tensors(model: nn.Module, merged: bool) -> Iterator[tuple[str, torch.Tensor]]:
    modules = dict(model.named_modules())
    persistent = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    for name, value in persistent.items():
        if not isinstance(value, torch.Tensor) or id(value) in seen or _of_adapter(name):
            continue
        seen.add(id(value))
        path, _, leaf = name.rpartition(".")
        adapted = modules.get(path.removesuffix(".base_layer"))
        if merged and leaf == "weight" and path.endswith(".base_layer") and adapted is not None:
            yield name, _merged(adapted, value)
        else:
            yield name, value


def _of_adapter(name: str) -> bool:
    return any(segment.startswith("lora_") for segment in name.split("."))


def _merged(adapted: Any, weight: torch.Tensor) -> torch.Tensor:
    """Return what PEFT's `merge` leaves in the base layer, by the same operations."""
    with torch.no_grad():
        result = weight.detach().clone()
        for adapter in adapted.active_adapters:
            if adapter in adapted.lora_A and adapter not in adapted.merged_adapters:
                result += adapted.get_delta_weight(adapter)
    return result


def _local(value: torch.Tensor, group: Any) -> Box:
    value = value.detach()
    shape = tuple(value.shape)
    if not hasattr(value, "device_mesh"):
        alone = not (distributed.is_available() and distributed.is_initialized())
        return Box(value, (0,) * value.ndim, shape, alone or distributed.get_rank(group) == 0)
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(value, DTensor)
    _, start = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    place: list[int] = list(value.device_mesh.get_coordinate() or ())
    copies = [at for at, placement in zip(place, value.placements, strict=True) if isinstance(placement, Replicate)]
    return Box(value.to_local(), tuple(start), shape, not any(copies))


def _parts(name: str, box: Box, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a tensor in the parts that an engine reports: itself, or each matrix of each expert where all experts are
    in one tensor.

    `...experts.gate_up_proj` [E, 2 I, H] and `down_proj` [E, H, I] (or both transposed) are transformers' names.
    """
    base, _, leaf = name.rpartition(".")
    shape = shapes[name]
    if leaf == "A_log":
        yield f"{base}.A", box.values
        return
    if not base.endswith("experts") or len(shape) != 3 or leaf not in ("gate_up_proj", "up_proj", "down_proj"):
        yield name, box.values
        return
    for index in range(shape[0]):
        local = index - box.start[0]
        inside = 0 <= local < len(box.values)
        one = box.values[local] if inside else box.values[:0].reshape(0)
        if leaf != "gate_up_proj":
            yield f"{base}.{index}.{leaf}.weight", one
            continue
        axis = _gate_axis(shape, shapes.get(f"{base}.down_proj"))
        half, start = shape[axis + 1] // 2, box.start[axis + 1]
        for place, matrix in enumerate(("gate_proj", "up_proj")):
            low, high = (
                min(max(place * half + more - start, 0), one.shape[axis] if inside else 0) for more in (0, half)
            )
            yield f"{base}.{index}.{matrix}.weight", one.narrow(axis, low, high - low) if inside else one


def _gate_axis(shape: Sequence[int], down: Sequence[int] | None) -> int:
    """Return the axis of one expert's gate_up matrix along which gate and up stand one after the other: 0 for [2 I, H],
    1 for [H, 2 I]. `shape` is that of all experts together; `down`, the shape of down_proj, tells which one it is: its
    last axis is H where the matrices are transposed."""
    return 1 if down is not None and down[2] == shape[1] and down[2] != down[1] else 0


def _as_it_is(values: torch.Tensor) -> torch.Tensor:
    return values


def _decay(values: torch.Tensor) -> torch.Tensor:
    """Return Mamba's A as engines hold it: -exp(A_log), in float32."""
    return -torch.exp(values.float())


def _in_dtypes(
    values: torch.Tensor, dtype: torch.dtype | None, small: bool, kept: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[Fingerprint]:
    """Yield fingerprints in the same dtypes on every rank, whatever the rank holds of the part.

    `small`: one more fingerprint is of the values rounded to a coarser dtype, the engine's or else bfloat16, and back.
    `kept` turns the values that are sent into those that an engine holds.
    """
    yield fingerprint(kept(values))
    if not values.is_floating_point():
        return
    if dtype is not None and dtype != values.dtype:
        yield fingerprint(kept(values), dtype)
    coarse = dtype if dtype is not None and dtype.itemsize < values.dtype.itemsize else torch.bfloat16
    if small and coarse.itemsize < values.dtype.itemsize:
        through = fingerprint(kept(values.to(coarse).to(values.dtype)))
        yield Fingerprint(f"{through.dtype}{ROUNDED}{name_of(coarse)}", through.elements, through.hashes)


def _over_ranks(own: Callable[[], Rows], group: Any) -> Rows:
    """Return each rank's rows, added over all ranks of the group; 32 bytes of each row are sent.

    Raises what `own` raises, and on every other rank `TrainerDeadError`, before anything is added.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1):
        return own()
    rows: Rows = {}
    failed: Exception | None = None
    try:
        rows = own()
    except Exception as error:
        # The others are on their way into the collective, where they would wait for this rank for ever.
        failed = error
    listed = zlib.crc32("\n".join(f"{part} {dtype}" for part, dtype in rows).encode())
    agreed = torch.tensor([failed is not None, listed, -listed], dtype=torch.int64, device=_device(group))
    distributed.all_reduce(agreed, distributed.ReduceOp.MAX, group)
    if failed is not None:
        raise failed
    wrong, highest, lowest = agreed.tolist()
    if wrong:
        raise TrainerDeadError("another rank could not make the fingerprints of what it holds; its log says why")
    if highest != -lowest:
        raise TrainerDeadError("the ranks hold parts of other names or dtypes: their fingerprints do not add up")
    return _added(rows, group)


def _added(found: Rows, group: Any) -> Rows:
    """Return each sum over all ranks. Hashes wrap around at 2^64, as int64 does."""
    device = _device(group)
    half = MODULUS // 2
    whole = torch.tensor(
        [
            (one.hashes - MODULUS if one.hashes >= half else one.hashes, one.elements, one.nonfinite)
            for one in found.values()
        ],
        dtype=torch.int64,
        device=device,
    )
    squares = torch.tensor([one.squares for one in found.values()], dtype=torch.float64, device=device)
    distributed.all_reduce(whole, group=group)
    distributed.all_reduce(squares, group=group)
    return {
        key: Fingerprint(key[1], elements, hashes % MODULUS, square, nonfinite)
        for key, (hashes, elements, nonfinite), square in zip(found, whole.tolist(), squares.tolist(), strict=True)
    }


def _device(group: Any) -> torch.device:
    backend = distributed.get_backend(group)
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")


def adapters(model: nn.Module, *, dtype: torch.dtype | None = None, group: Any = None) -> list[AdapterSums]:
    """Return fingerprints of a PEFT model's LoRA adapters, in `dtype` if it is given. B comes with the scale multiplied
    in, as vLLM holds it. This is a collective like `fingerprints`."""
    modules: list[tuple[str, Any]] = [
        (canonical(path), module) for path, module in model.named_modules() if hasattr(module, "lora_A")
    ]
    ranks = {name: int(layer.r[name]) for _, layer in modules for name in layer.lora_A}
    rows = _over_ranks(lambda: _rows(_boxes(_adapter_tensors(modules, dtype), group), None), group)
    found: dict[str, Sums] = {name: {} for name in ranks}
    for part, sums in _by_part(rows).items():
        adapter, _, inside = part.partition(_OF)
        found[adapter][inside] = sums
    return [AdapterSums.of(name, ranks[name], sums) for name, sums in found.items()]


def _adapter_tensors(
    modules: Iterable[tuple[str, Any]], dtype: torch.dtype | None
) -> Iterator[tuple[str, torch.Tensor]]:
    for base, layer in modules:
        for name in layer.lora_A:
            first, second = (side[name].weight.detach() for side in (layer.lora_A, layer.lora_B))
            scaled = second.to(dtype or second.dtype) * layer.scaling[name]
            yield f"{name}{_OF}{base}.lora_A", first.to(scaled.dtype)
            yield f"{name}{_OF}{base}.lora_B", scaled
