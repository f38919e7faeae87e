"""Returns freed memory to the system for as long as the coordinator runs."""

import asyncio

from omni_rl.heap import return_free_memory

TRIM_SECONDS = 20.0
"""Seconds between two times that memory which lies free between allocations that stay is returned."""


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
