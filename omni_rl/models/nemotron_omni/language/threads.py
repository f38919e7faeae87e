"""Loops compiled for the CPU, and run on as many threads as torch uses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
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


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mamba")
