"""Describes where released elements lie in an engine, by few strided blocks instead of one number per element."""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.sync.layout.kinds import Kind


class Transform(IntEnum):
    """What the engine's loader does to a value. Each transform starts with a copy into the engine's dtype."""

    COPY = 0
    NEGATIVE_EXPONENTIAL = 1
    """Mamba's A = -exp(A_log), in float32."""

    def __call__(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return `values` as a parameter of `dtype` holds them after loading, bit for bit."""
        values = values.to(dtype)
        if self is Transform.NEGATIVE_EXPONENTIAL:
            return (-torch.exp(values.float())).to(dtype)
        return values


class StridedBlock(NamedTuple):
    """`rows` runs of `length` elements: run i is tensor[source + i * source_stride :] at storage[target + ...].

    `storage` and `tensor` are numbers in the map's lists; offsets and strides count elements of the flat tensors.
    """

    storage: int
    tensor: int
    transform: Transform
    rows: int
    length: int
    source: int
    source_stride: int
    target: int
    target_stride: int

    @property
    def elements(self) -> int:
        return self.rows * self.length

    def of_tensor(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the block's view, [rows, length] (or [length], if there is one run), of the released tensor's flat
        view."""
        return self._view(flat, self.source, self.source_stride)

    def of_storage(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the block's view of the engine's storage, of the same shape as that of the tensor."""
        return self._view(flat, self.target, self.target_stride)

    @property
    def kind(self) -> Kind:
        return Kind.RELEASED if self.transform is Transform.COPY else Kind.TRANSFORMED

    def fits(self, released: int, stored: int) -> bool:
        """Return whether the block stays inside a tensor of `released` elements and a storage of `stored` elements."""
        last = self.rows - 1
        return (
            min(self.rows, self.length) > 0
            and min(self.source, self.source_stride, self.target, self.target_stride) >= 0
            and self.source + last * self.source_stride + self.length <= released
            and self.target + last * self.target_stride + self.length <= stored
        )

    def places(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the storage's element numbers at row-major `positions` of the view."""
        return self.target + positions // self.length * self.target_stride + positions % self.length

    def _view(self, flat: torch.Tensor, offset: int, stride: int) -> torch.Tensor:
        if self.rows == 1:
            return flat[offset : offset + self.length]
        return flat.as_strided((self.rows, self.length), (stride, 1), flat.storage_offset() + offset)


class ElementRun(NamedTuple):
    """`length` elements that follow each other in one released tensor and in the storage too."""

    tensor: int
    transform: int
    length: int
    source: int
    target: int


def runs(
    numbers: NDArray[np.signedinteger], transforms: NDArray[np.int8], first: NDArray[np.int64]
) -> Iterator[ElementRun]:
    """Yield the longest runs of one storage, in its order.

    `numbers` [elements] has the number of the released element at each place (negative: none), and `first` [tensors +
    1] the number with which each tensor starts.
    """
    if not len(numbers):
        return
    before, after = numbers[:-1], numbers[1:]
    # -1 comes before 0 as a number, but stands for no element.
    neighbours = ((after - before == 1) & (before >= 0)) | ((after < 0) & (before < 0))
    neighbours &= transforms[1:] == transforms[:-1]
    starts = np.concatenate([[0], np.flatnonzero(~neighbours) + 1])
    ends = np.concatenate([starts[1:], [len(numbers)]])
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if numbers[start] >= 0:
            yield from _split(int(numbers[start]), end - start, start, int(transforms[start]), first)


def _split(number: int, length: int, target: int, transform: int, first: NDArray[np.int64]) -> Iterator[ElementRun]:
    """Yield the elements from `number` on as runs, cut where one tensor ends and the next begins."""
    tensor = int(np.searchsorted(first, number, side="right")) - 1
    while length:
        part = min(length, int(first[tensor + 1]) - number)
        if part:
            yield ElementRun(tensor, transform, part, number - int(first[tensor]), target)
        number, target, length, tensor = number + part, target + part, length - part, tensor + 1


def blocks(storage: int, pieces: Iterable[ElementRun]) -> Iterator[StridedBlock]:
    """Yield blocks: runs of equal length at equal distances are joined."""
    joined: list[ElementRun] = []
    for run in pieces:
        if joined and not _continues(joined, run):
            yield _block(storage, joined)
            joined = []
        joined.append(run)
    if joined:
        yield _block(storage, joined)


def _continues(joined: list[ElementRun], run: ElementRun) -> bool:
    last = joined[-1]
    if (run.tensor, run.transform, run.length) != (last.tensor, last.transform, last.length):
        return False
    if len(joined) == 1:
        return run.source >= last.source  # torch has no negative strides
    before = joined[-2]
    return (run.source - last.source, run.target - last.target) == (
        last.source - before.source,
        last.target - before.target,
    )


def _block(storage: int, joined: list[ElementRun]) -> StridedBlock:
    one, count = joined[0], len(joined)
    step = (joined[1].source - one.source, joined[1].target - one.target) if count > 1 else (0, 0)
    return StridedBlock(
        storage, one.tensor, Transform(one.transform), count, one.length, one.source, step[0], one.target, step[1]
    )
