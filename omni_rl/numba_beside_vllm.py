"""Lets numba and vLLM live in one process, whichever comes first; imports llvmlite."""

from functools import cache
from typing import Any

from llvmlite.binding import ffi


@cache
def hide() -> None:
    """Make llvmlite's library handle (numba's) answer no special names.

    At its start vLLM reads `__dict__` of every object in every module, and this handle takes any name for a C function.
    """
    take_any = ffi._lib_wrapper.__getattr__

    def take_functions(handle: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return take_any(handle, name)

    ffi._lib_wrapper.__getattr__ = take_functions
