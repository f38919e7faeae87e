"""Measures where a step's time goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Measures the seconds of each phase of one step. `on_phase` is called with each phase's name as it begins."""

    def __init__(self, on_phase: Callable[[str], object] = lambda phase: None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_phase = on_phase

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        self._on_phase(phase)
        began = time.monotonic()
        yield
        self.seconds[phase] = time.monotonic() - began
