"""Says what a released tensor is, which of a model family's tensors a weight sync sends, and in which dtype each
travels and is served."""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TensorSpec:
    """What is sent under one released name: dtype and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Released:
    """One released tensor: `tensor` itself, or its row `row` where several released tensors are stacked in it.

    `tensor` is whole, or a DTensor; every process of its mesh then has this object, with its own shard.
    """

    name: str
    tensor: torch.Tensor
    row: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole released tensor."""
        return tuple(self.tensor.shape if self.row is None else self.tensor.shape[1:])


@dataclass(frozen=True)
class ReleasedFormat:
    """A family's released tensors, by their names.

    `derived` are patterns of names that are no weights, because both sides make the tensors from the configuration.
    `float32` are the ends of names whose tensors are served in float32 in any case.
    """

    derived: tuple[re.Pattern[str], ...] = ()
    float32: tuple[str, ...] = ()

    def is_sent(self, name: str) -> bool:
        """Return whether the tensor `name` is a weight: sent, held and counted in a version's digest by both sides."""
        return not any(pattern.fullmatch(name) for pattern in self.derived)

    def as_sent(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the tensor `name` as sync sends it to an engine that serves in `dtype`; integers stay as they are."""
        return tensor.to(self.sent_dtype(name, tensor.dtype, dtype))

    def sent_dtype(self, name: str, own: torch.dtype, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype that `as_sent` gives to a tensor of the dtype `own`."""
        if not own.is_floating_point:
            return own
        return torch.float32 if name.endswith(self.float32) else dtype
