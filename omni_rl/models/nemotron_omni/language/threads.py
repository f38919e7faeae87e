"""Compiled kernels on as many threads as torch uses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray


def on_threads(kernel: Callable[..., None], units: NDArray[Any], *arrays: NDArray[Any]) -> None:
    """Run `kernel(units, *arrays)`, its `units` dealt out to the threads in turn; they must not write the same element.

    `kernel` has to let go of the interpreter's lock.
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
