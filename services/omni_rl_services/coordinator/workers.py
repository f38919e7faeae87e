"""Runs functions that look through many bytes aside from the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """Worker threads for functions that take longer the more bytes they look through. `small` is the bytes up to which
    a function runs in the event loop: the way to another thread and back takes longer than so few."""

    def __init__(self, threads: int, name: str, small: int) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._small = small

    async def run(self, size: int, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Call a function that looks through `size` bytes, in a worker thread unless they are few."""
        if size <= self._small:
            return function(*args, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **named))

    def close(self) -> None:
        """End the threads once each has done what it is at; what waits for one is cancelled."""
        self._threads.shutdown(cancel_futures=True)
