"""Makes glibc return freed memory to the system."""

import asyncio
import ctypes
import os

from omni_rl.heap import return_free_memory

ARENAS = 2
"""The number of heaps that all threads share. Each heap keeps what is freed in it, and Python's threads run one at a
time anyhow."""
TRIM_SECONDS = 20.0
"""Seconds between two times that memory which lies free between allocations that stay is returned."""
_M_ARENA_MAX = -8
"""The number of `mallopt`'s parameter, from malloc.h."""
_LIBC = ctypes.CDLL(None)


def share_heaps() -> None:
    """Let all threads share a few heaps. Another C library is left as it is, and so is a number that the operator
    set."""
    mallopt = getattr(_LIBC, "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, ARENAS)


async def keep_trimmed() -> None:
    """Return the free memory of the heaps to the system, every `TRIM_SECONDS`.

    Once the first long body is freed, glibc takes allocations of its length for usual, up to 32 MiB, and puts them on
    the heap, where short allocations that stay prevent the space of long ones from being returned: a coordinator's
    memory would grow for days, with nothing in it. A fixed M_MMAP_THRESHOLD would return it too, but its page faults
    cost a fifth of the speed from records to verdict.
    """
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        await asyncio.to_thread(return_free_memory)
