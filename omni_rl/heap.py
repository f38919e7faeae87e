"""Returns freed memory to the system, where glibc would hold on to it."""

import ctypes

_LIBC = ctypes.CDLL(None)


def return_free_memory() -> None:
    """Return to the system what lies free in this process's heaps, which takes milliseconds without the interpreter's
    lock. A C library that has no such call is left to itself."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)
