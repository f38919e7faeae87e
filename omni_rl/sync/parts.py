"""Describes what one process holds of released tensors: all of each, or the rows that a sharded state dict gave it."""

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from omni_rl.sync.released import Released


class Shares:
    """Reads what this process contributes to each tensor; the contributions of all processes make up the tensor.

    Whole tensors are contributed by the `first` process, sharded rows by the process that has them, without
    communication. Other shardings, and all if `gather`, are gathered for the first process: a collective, so all
    processes must ask for the same tensors in the same order.
    """

    def __init__(self, *, first: bool, gather: bool = False) -> None:
        self._first = first
        self._gather = gather
        self._gathered: tuple[torch.Tensor, torch.Tensor] | None = None

    def of(self, released: Released) -> tuple[int, torch.Tensor]:
        """Return the element of the tensor where this process's share starts, and the share: contiguous, possibly
        empty."""
        tensor = released.tensor
        rows = None if self._gather else own_rows(released)
        if rows is None or not isinstance(tensor, DTensor):
            whole = self._whole(tensor)
            own = whole if released.row is None else whole[released.row]
            return 0, own if self._first else own.new_empty(0)
        start, local = rows
        return (start, local) if _speaks_for_its_rows(tensor) else (0, local.new_empty(0))

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, DTensor):
            return tensor.detach()
        if self._gathered is None or self._gathered[0] is not tensor:  # rows of one stack follow each other
            self._gathered = None
            self._gathered = tensor, tensor.detach().full_tensor()  # type: ignore[attr-defined]
        return self._gathered[1]


def own_rows(released: Released) -> tuple[int, torch.Tensor] | None:
    """Return the element of the tensor where this process's rows start, and the storage of those rows, possibly none.

    For a whole tensor these are all its rows; the result is None for a sharding that gives a process anything but some
    rows. Other processes may have the same rows.
    """
    tensor = released.tensor
    if not isinstance(tensor, DTensor):
        whole = tensor.detach()
        return 0, whole if released.row is None else whole[released.row]
    if not _is_in_rows(tensor):
        return None
    local = tensor.detach().to_local()  # type: ignore[attr-defined]
    if not local.numel():
        return 0, local.new_empty(0)
    if released.row is None and not tensor.ndim:
        return 0, local
    _, (first_row, *_) = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if released.row is None:
        return first_row * (tensor.numel() // tensor.shape[0]), local
    inside = first_row <= released.row < first_row + len(local)
    return 0, local[released.row - first_row] if inside else local.new_empty(0)


def _is_in_rows(tensor: DTensor) -> bool:
    """Return whether each process has all of some rows. A strided shard (a subclass) has them in another order."""
    return all(isinstance(p, Replicate) or (type(p) is Shard and p.dim == 0) for p in tensor.placements)


def _speaks_for_its_rows(tensor: DTensor) -> bool:
    """Return whether this process is the first among those that hold the same rows."""
    position = tensor.device_mesh.get_coordinate()
    if position is None:
        return False  # a process outside the mesh, which has no rows
    return all(at == 0 for at, p in zip(position, tensor.placements, strict=True) if isinstance(p, Replicate))
