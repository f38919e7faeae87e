"""Does the plain copies of a layout map as runs of bytes: numbers, so that a sync does no arithmetic on tensors."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.sync.checksum import Checksum, as_bytes
from omni_rl.sync.layout.blocks import StridedBlock
from omni_rl.sync.pieces import PIECE_BYTES

Run = tuple[int, int, int, int, int]


class Moves:
    """The rows of some blocks whose bytes are copied as they are, in pieces.

    A row of `_runs` int64 [runs, 5] has: released tensor, storage, first byte in the tensor, first byte in the storage,
    bytes. `_batches` are slices of runs that together are enough work for a thread.
    """

    def __init__(self, blocks: Sequence[StridedBlock], itemsizes: Sequence[int]) -> None:
        """Make the runs. `itemsizes` has the bytes of an element of each released tensor, which are as many in the
        engine."""
        runs = [run for block in blocks for run in _runs(block, itemsizes[block.tensor])]
        self._runs: NDArray[np.int64] = np.array(runs, np.int64).reshape(-1, 5)
        batch = np.cumsum(self._runs[:, 4]) // PIECE_BYTES
        edges = [0, *(np.flatnonzero(np.diff(batch)) + 1).tolist(), len(runs)]
        self._batches = [slice(*edge) for edge in pairwise(edges)]

    def copies(self, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> Iterator[Callable[[], None]]:
        """Return tasks that copy released tensors into the engine's storages; all of them flat and in this machine's
        memory.

        Whoever runs the tasks keeps `sources` and `targets` alive.
        """
        tensor, storage, start, place, nbytes = self._runs.T
        here = np.array([source.data_ptr() for source in sources], np.int64)
        there = np.array([target.data_ptr() for target in targets], np.int64)
        table = np.stack([there[storage] + place, here[tensor] + start, nbytes], axis=1)
        return (partial(_copy, table[batch].tolist()) for batch in self._batches)

    def checksums(self, held: Sequence[torch.Tensor]) -> Iterator[Callable[[], list[tuple[int, Checksum]]]]:
        """Return tasks that read the engine's storages; each returns released tensors' numbers with the checksums of
        what they fill."""
        content = [flat.view(torch.uint8) for flat in held]
        read = [flat.numpy() if flat.is_cpu else flat for flat in content]
        return (partial(_checksums, self._runs[batch].tolist(), read) for batch in self._batches)


def _runs(block: StridedBlock, itemsize: int) -> Iterator[Run]:
    for row in range(block.rows):
        start = (block.source + row * block.source_stride) * itemsize
        place = (block.target + row * block.target_stride) * itemsize
        for first in range(0, block.length * itemsize, PIECE_BYTES):
            nbytes = min(PIECE_BYTES, block.length * itemsize - first)
            yield block.tensor, block.storage, start + first, place + first, nbytes


def _copy(table: list[tuple[int, int, int]]) -> None:
    """Copy by C's memmove, which releases the GIL."""
    for target, source, nbytes in table:
        ctypes.memmove(target, source, nbytes)


def _checksums(runs: list[Run], read: Sequence[NDArray[np.uint8] | torch.Tensor]) -> list[tuple[int, Checksum]]:
    found = []
    for tensor, storage, start, place, nbytes in runs:
        held = read[storage][place : place + nbytes]
        found.append((tensor, Checksum.of(as_bytes(held) if isinstance(held, torch.Tensor) else held, start)))
    return found
