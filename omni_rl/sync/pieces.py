"""Works on tensors in pieces, by several threads: one thread alone does not fill the memory bus."""

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import torch

from omni_rl.sync.checksum import Checksum, as_bytes

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
PIECE_BYTES = 2**23
"""The bytes that one thread works on at a time."""
THREADS = 4
"""The most threads that are used: a few fill the bus, and other processes of the machine move weights too."""
AHEAD = 8
"""How many tasks per thread are drawn before the first is done."""


class TensorPart(NamedTuple):
    """Neighbouring elements of the tensor `name`, from element `start` on, to be taken as `dtype`."""

    name: str
    start: int
    values: torch.Tensor
    dtype: torch.dtype


def take_all(parts: Iterable[TensorPart], take: Callable[[str, torch.Tensor, int], Checksum]) -> dict[str, Checksum]:
    """Hand the parts, in pieces, to `take(name, values, start)`, in threads; return the sum of its results by name."""
    return totals(in_threads(_tasks(parts, take)))


def totals(found: Iterable[list[tuple[K, Checksum]]]) -> dict[K, Checksum]:
    """Return the sum of the shares of each key."""
    sums: dict[K, Checksum] = {}
    for shares in found:
        for key, share in shares:
            sums[key] = Checksum.total((sums[key], share)) if key in sums else share
    return sums


def checksum_of(name: str, values: torch.Tensor, start: int) -> Checksum:
    """Return the checksum of values that begin `start` elements into their tensor: a `take` that only reads."""
    return Checksum.of(as_bytes(values), start * values.element_size())


def in_threads(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the tasks' results in order, computed by as many threads as this process may use cores, at most `THREADS`.

    Tasks are drawn by the caller's thread, in order, so drawing one may be a collective of several processes. The first
    task that raises ends the rest.
    """
    threads = min(THREADS, len(os.sched_getaffinity(0)))
    drawn = iter(tasks)
    with ThreadPoolExecutor(threads, "weights") as pool:
        waiting: deque[Future[T]] = deque(pool.submit(task) for task in islice(drawn, AHEAD * threads))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(task) for task in islice(drawn, 1))
        finally:
            for future in waiting:
                future.cancel()


def pieces(elements: int, itemsize: int) -> Iterator[slice]:
    """Yield slices of at most `PIECE_BYTES` that cover so many elements, in order."""
    step = PIECE_BYTES // itemsize
    for start in range(0, elements, step):
        yield slice(start, min(start + step, elements))


def _tasks(
    parts: Iterable[TensorPart], take: Callable[[str, torch.Tensor, int], Checksum]
) -> Iterator[Callable[[], list[tuple[str, Checksum]]]]:
    """Yield tasks: small pieces are joined until they are enough work for a thread."""
    joined: list[TensorPart] = []
    nbytes = 0
    for part in parts:
        flat = part.values.detach().reshape(-1)
        for piece in pieces(flat.numel(), part.dtype.itemsize):
            joined.append(part._replace(values=flat[piece], start=part.start + piece.start))
            nbytes += (piece.stop - piece.start) * part.dtype.itemsize
            if nbytes >= PIECE_BYTES:
                yield partial(_taken, take, joined)
                joined, nbytes = [], 0
    if joined:
        yield partial(_taken, take, joined)


def _taken(take: Callable[[str, torch.Tensor, int], Checksum], parts: list[TensorPart]) -> list[tuple[str, Checksum]]:
    return [(part.name, take(part.name, part.values.to(part.dtype), part.start)) for part in parts]
