"""Runs threads that call a service until they are asked to end. A broken one is reported: missing load looks like
health."""

import threading
import time
from collections.abc import Callable
from typing import Any


class Callers:
    """Threads that call the service. They are daemons: whoever interrupts a soak does not wait for them."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.broken: list[str] = []
        self._threads: list[threading.Thread] = []

    def start(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call `call` in a thread of its own."""
        name = f"{call.__name__}{arguments if arguments else ''}"
        thread = threading.Thread(target=self._run, args=(name, call, arguments), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, seconds: float) -> None:
        """Ask all threads to end, and wait so long for them altogether; one that is not done then counts as broken
        too."""
        self.ended.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.broken += [f"{thread.name}: did not end" for thread in self._threads if thread.is_alive()]

    def _run(self, name: str, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        try:
            call(*arguments)
        except Exception as error:  # the end of a thread: reported with the results
            self.broken.append(f"{name}: {type(error).__name__}: {error}")
