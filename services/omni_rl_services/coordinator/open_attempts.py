"""Holds open what a sink writes to, for the attempts that were used last: a coordinator outlives thousands."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from omni_rl_services.coordinator.sinks import AttemptStart

T = TypeVar("T")
OPEN = 32
"""The most attempts that a sink has open at a time, since each takes threads and descriptors. They are more than are
trained at a time with one coordinator: an attempt beyond them would be opened again with each of its steps."""


class OpenAttempts(Generic[T]):
    """Opens something for each attempt at its first use, and closes it when `OPEN` others were used since, or at the
    end."""

    def __init__(self, opening: Callable[[AttemptStart], T], closing: Callable[[T], None]) -> None:
        self._opening = opening
        self._closing = closing
        self._open: OrderedDict[AttemptStart, T] = OrderedDict()

    def one(self, of: AttemptStart) -> T:
        """Return what is open for an attempt, opened now if it was not."""
        if of not in self._open:
            self._open[of] = self._opening(of)
        self._open.move_to_end(of)
        while len(self._open) > OPEN:
            self._closing(self._open.popitem(last=False)[1])
        return self._open[of]

    def close(self) -> None:
        """Close everything."""
        for opened in self._open.values():
            self._closing(opened)
