"""Lists every byte of an engine's model as flat tensors: each storage once, however many names lie on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from omni_rl.errors import LayoutError

# The dtypes that weights are served in. Eight-bit floats, packed integers and the like have scales and shuffles.
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)


class StorageSpec(NamedTuple):
    """One storage: the first name on it, all other names on it, dtype, elements, and whether a checkpoint has it."""

    name: str
    aliases: tuple[str, ...]
    dtype: torch.dtype
    elements: int
    persistent: bool


@dataclass(frozen=True)
class Storage:
    """A storage of a running model; `flat` [elements] is all of it, and writing to `flat` writes to the model."""

    spec: StorageSpec
    flat: torch.Tensor


def storages(model: nn.Module) -> tuple[Storage, ...]:
    """Return all storages under the parameters and buffers of `model`, in their order.

    Raises `LayoutError`, naming the parameter, for a format in which no update could be proven.
    """
    names: dict[int, list[str]] = {}
    owners: dict[int, tuple[torch.Tensor, bool]] = {}
    for name, tensor, persistent in _tensors(model):
        _refuse_unknown_format(name, tensor)
        if tensor.untyped_storage().nbytes() == 0:
            continue
        address = tensor.untyped_storage().data_ptr()
        first = names.setdefault(address, [])
        if first and owners[address][0].dtype != tensor.dtype:
            raise LayoutError(
                f"{name} ({tensor.dtype}) lies on the storage of {first[0]} ({owners[address][0].dtype}); the layout "
                "map needs one dtype per storage"
            )
        first.append(name)
        owners.setdefault(address, (tensor, persistent))
    return tuple(_storage(names[address], *owners[address]) for address in names)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Yield name, tensor, and whether state dicts hold it: parameters first, under every name that they have."""
    modules = [(f"{name}." if name else "", module) for name, module in model.named_modules(remove_duplicate=False)]
    for prefix, module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter, True
    for prefix, module in modules:
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield prefix + name, buffer, name not in module._non_persistent_buffers_set


def _refuse_unknown_format(name: str, tensor: torch.Tensor) -> None:
    reason = None
    if tensor.layout != torch.strided or tensor.is_quantized:
        reason = f"it is {tensor.layout}, quantised: {tensor.is_quantized}"
    elif tensor.is_meta:
        reason = "it has no storage (meta device)"
    elif tensor.dtype not in DTYPES:
        reason = f"it is {tensor.dtype}: quantised formats are not covered"
    elif isinstance(tensor, nn.Parameter) and tensor.numel() == 0:
        reason = "it is empty: its values were packed away at loading, and no update reaches them"
    elif tensor.numel() and tensor.untyped_storage().nbytes() % tensor.element_size():
        reason = f"its storage has {tensor.untyped_storage().nbytes()} bytes, no multiple of an element"
    if reason is not None:
        raise LayoutError(f"engine parameter {name} has no provable layout: {reason}. Serve it unquantised and plain")


def _storage(names: list[str], owner: torch.Tensor, persistent: bool) -> Storage:
    elements = owner.untyped_storage().nbytes() // owner.element_size()
    flat = torch.empty(0, dtype=owner.dtype, device=owner.device)
    flat.set_(owner.untyped_storage(), 0, (elements,), (1,))
    return Storage(StorageSpec(names[0], tuple(names[1:]), owner.dtype, elements, persistent), flat)
