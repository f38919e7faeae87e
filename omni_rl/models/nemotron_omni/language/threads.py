"""Loops compiled for the CPU, and run on as many threads as torch uses."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray


def compiled(loops: Callable[..., None]) -> Callable[..., None]:
    """`loops` as machine code that lets go of the interpreter's lock; kept on disk, as compiling takes seconds.

    Sums may be taken in any order, which vectorising needs.
    """
    machine_code: Callable[..., None] = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})(
        loops
    )
    return machine_code


def on_threads(kernel: Callable[..., None], units: NDArray[Any], *arrays: NDArray[Any]) -> None:
    """Run `kernel(units, *arrays)`, its `units` dealt out to the threads in turn; they must not write the same element.

    `kernel` has to be `compiled`.
    """
    threads = min(torch.get_num_threads(), len(units))
    if threads == 1:
        kernel(units, *arrays)
        return
    for done in [_pool(threads).submit(kernel, units[part::threads].copy(), *arrays) for part in range(threads)]:
        done.result()


def array(tensor: torch.Tensor) -> NDArray[Any]:
    """The memory of a tensor on the CPU, which has to outlive the array.

    Not by `Tensor.numpy`: after that torch never resizes the storage again, and FSDP gives back the parameters that it
    gathered by resizing theirs.
    """
    dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
    if not tensor.numel():
        return np.empty(tuple(tensor.shape), dtype)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = (ctypes.c_byte * ((last + 1) * dtype.itemsize)).from_address(tensor.data_ptr())
    return np.ndarray(
        tuple(tensor.shape), dtype, memoryview(memory), 0, [stride * dtype.itemsize for stride in tensor.stride()]
    )


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mamba")
