"""Reads numbers as trainers hold them into plain numpy: torch tensors of any dtype, on any device, with gradients,
jagged."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from omni_rl.errors import RecordError

if TYPE_CHECKING:
    import torch

    Numbers: TypeAlias = ArrayLike | torch.Tensor | Sequence[ArrayLike] | Sequence[torch.Tensor]
else:
    Numbers = Any
"""A number for each token of B answers: an array or tensor [B, T], or B rows of their own lengths (a list, or a jagged
tensor)."""
V = TypeVar("V", bound=Mapping[str, Any])


ROWS = {1: "row of numbers", 2: "row of numbers a token"}
"""What an answer has, by the number of its dimensions."""


def is_tensor(value: object) -> TypeGuard["torch.Tensor"]:
    """Return whether a value is a torch tensor, without importing torch: a process that has a tensor has imported
    it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def snapshot(value: Any) -> Any:
    """Return a copy of a value that its owner may write over at once: tensors without their gradients, on the CPU, in
    their own dtype; arrays; and lists and mappings, of these or of plain numbers. Everything else is taken as it
    is."""
    if is_tensor(value):
        # Copying from a device waits for it. Every framework's own metrics of these tensors have waited already.
        return _copied(value.detach()) if value.device.type == "cpu" else value.detach().to("cpu")
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {name: snapshot(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        # A list of plain numbers may be long, and is copied without a look at each of them.
        return list(value) if value and isinstance(value[0], int | float | str) else [snapshot(item) for item in value]
    return value


def unwritten(values: V) -> Callable[[], V]:
    """Return a function that gives the values back: what `snapshot` does, for values whose owner does not write to them
    any more, without the copying. Tensors on a device are copied all the same.

    The function raises `RecordError` where a tensor was written to in place meanwhile, as far as torch counts that.
    """
    found = {
        name: value.detach() if is_tensor(value) and value.device.type == "cpu" else snapshot(value)
        for name, value in values.items()
    }
    counts = {name: _writes(value) for name, value in found.items()}

    def given() -> V:
        if changed := next((name for name, value in found.items() if _writes(value) != counts[name]), None):
            raise RecordError(f"the trainer wrote to {changed} before it was read")
        return cast(V, found)

    return given


def _writes(value: Any) -> int:
    """Return how often a tensor was written to in place; a tensor of inference mode has no such count."""
    return value._version if is_tensor(value) and not value.is_inference() else 0


def _copied(tensor: "torch.Tensor") -> Any:
    """Return a copy made by one thread: torch's own wakes its pool, whose threads then spin, and cost ten times the
    copy."""
    import torch  # who has a tensor has it

    if tensor.is_nested:
        return tensor.clone()
    if not _is_small(tensor):
        return tensor.numpy().copy()
    bits = tensor.view(torch.int16 if tensor.element_size() == 2 else torch.uint8)
    return torch.from_numpy(bits.numpy().copy()).view(tensor.dtype)


def _is_small(tensor: "torch.Tensor") -> bool:
    """Return whether a tensor is of bfloat16, or of a kind of fp8, which numpy has not; float16 goes the same way."""
    return tensor.is_floating_point() and tensor.element_size() < 4


def size_of(value: Any) -> int:
    """Return about how many bytes a snapshot of the value takes."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_tensor(value):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(size_of(item) for item in value.values())
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple):
        return 8 * len(value) if value and isinstance(value[0], int | float) else sum(map(size_of, value))
    return 8


def as_array(value: Any) -> NDArray[Any]:
    """Return a tensor or anything array-like as a numpy array; bfloat16 and float16 become float32."""
    if is_tensor(value):
        plain = value.detach().to("cpu")
        return (plain.float() if _is_small(plain) else plain).numpy()
    return np.asarray(value)


def rows_of(name: str, values: Any, dimensions: int = 1) -> list[NDArray[Any]]:
    """Return one array an answer, each of that many `dimensions`.

    Raises:
        RecordError: The values are not one row of numbers an answer; `name` says which values.
    """
    if is_tensor(values) and values.is_nested:
        return [as_array(row) for row in values.unbind()]
    if not isinstance(values, list | tuple):
        values = as_array(values)
        if values.ndim != 1 + dimensions and values.dtype != object:
            raise RecordError(f"{name} has shape {values.shape}; expected one {ROWS[dimensions]} an answer")
    rows = [as_array(row) for row in values]
    # A number that is not there is None in some frameworks' lists.
    rows = [row.astype(np.float64) if row.dtype == object else row for row in rows]
    if any(row.ndim != dimensions for row in rows):
        raise RecordError(f"{name} is not one {ROWS[dimensions]} an answer")
    return rows


def floats_of(name: str, values: Any, count: int) -> list[float]:
    """Return `count` numbers, one an answer, from that many or from one that stands for all.

    Raises:
        RecordError: There are more or fewer.
    """
    array = as_array(values).astype(np.float64)
    if array.ndim == 0:
        return [float(array)] * count
    if array.shape != (count,):
        raise RecordError(f"{name} has shape {array.shape}; expected {count} numbers, one an answer")
    found: list[float] = array.tolist()
    return found
