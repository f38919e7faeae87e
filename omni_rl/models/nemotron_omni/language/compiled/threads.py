"""Compiles loops for the CPU, and runs them on as many threads as torch uses."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray


def compiled(loops: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `loops` to machine code that releases the GIL; it is stored on disk, as compiling takes seconds.

    Sums may be taken in any order and a division by zero is infinite, both of which vectorising needs.
    """
    fast = {"contract", "reassoc", "nsz"}
    with _cache_of_these_sources():
        machine_code: Callable[..., Any] = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=fast)(loops)
    return machine_code


@contextmanager
def _cache_of_these_sources() -> Iterator[None]:
    """Make the cache depend on all files here: numba looks for changes in a function's own file only, and would keep
    code from before a change in `numbers`."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(Path(before or Path(__file__).parent / "__pycache__") / _sources())
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


@cache
def _sources() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def ranges(size: int) -> NDArray[Any]:
    """Return start, end and number of a range of `size` for each thread."""
    return _ranges(size, torch.get_num_threads())


@lru_cache(maxsize=64)
def _ranges(size: int, threads: int) -> NDArray[Any]:
    bounds = np.linspace(0, size, min(threads, size) + 1).astype(np.int64)
    return np.stack([bounds[:-1], bounds[1:], np.arange(len(bounds) - 1)], axis=1)


def on_threads(kernel: Callable[..., Any], units: NDArray[Any], *arguments: Any) -> None:
    """Run `kernel(units, *arguments)`, with `units` distributed over the threads in turn; they must not write the same
    element.

    `kernel` has to be `compiled`.
    """
    threads = min(torch.get_num_threads(), len(units))
    if threads == 1:
        kernel(units, *arguments)
        return
    for done in [_pool(threads).submit(kernel, units[part::threads].copy(), *arguments) for part in range(threads)]:
        done.result()


def array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return the memory of a tensor on the CPU as an array, which must not outlive the tensor.

    `Tensor.numpy` is not used: after it torch never resizes the storage again, and FSDP gives back the parameters that
    it gathered by resizing theirs.
    """
    if not tensor.numel():  # its memory has no address
        return np.empty(tuple(tensor.shape), np.dtype(str(tensor.dtype).removeprefix("torch.")))
    return np.asarray(_Memory(tensor))


class _Memory:
    """A tensor's memory by NumPy's array interface, which asks the tensor nothing."""

    def __init__(self, tensor: torch.Tensor) -> None:
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"<{'f' if tensor.is_floating_point() else 'i'}{size}",
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * size for stride in tensor.stride()),
            "data": (tensor.data_ptr(), False),
        }


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mamba")
