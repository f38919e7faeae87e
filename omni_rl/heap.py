"""Returns freed memory to the system, where glibc would hold on to it, and lets the garbage collector rest where it
would find nothing."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

ARENAS = 2
"""The number of heaps that all threads share. Each heap keeps what is freed in it, and Python's threads run one at a
time anyhow."""
_M_ARENA_MAX = -8
"""The number of `mallopt`'s parameter, from malloc.h."""
_LIBC = ctypes.CDLL(None)


def share_heaps() -> None:
    """Let all threads share a few heaps. Another C library is left as it is, and so is a number that the operator
    set."""
    mallopt = getattr(_LIBC, "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, ARENAS)


def return_free_memory() -> None:
    """Return to the system what lies free in this process's heaps, which takes milliseconds without the interpreter's
    lock. A C library that has no such call is left to itself."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the garbage collector rest while much is imported, all of which stays: walking over it again and again is a
    fifth of the time that an import of vLLM or of a training model takes."""
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ran:
            gc.enable()
