"""What whoever uses the policies outlives: a coordinator, a bridge or engines that die and come back."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from omni_rl.errors import (
    CoordinatorUnreachableError,
    FencedError,
    OmniRLError,
    QuarantinedError,
    RayUnavailableError,
    SyncRunningError,
    SyncUndecidedError,
    WeightUpdateError,
)

T = TypeVar("T")
WAITS: dict[type[OmniRLError], float] = {RayUnavailableError: 180.0, SyncRunningError: 600.0}
"""Seconds for which a sync is asked for again. A bridge that was restarted attaches to every actor, and finishes or
rolls back a sync, before it answers; and somebody else may have asked for one."""
UNDONE = (WeightUpdateError, SyncUndecidedError, FencedError, QuarantinedError)
"""What a sync ends with that changed nothing, or that the next one settles: another may go through."""
MEND_SECONDS = 180.0
"""For engines that died to have successors: one starts within a minute, and on a busy machine not the first time."""
LOOK_SECONDS = 1.0


def patiently(call: Callable[[], T]) -> T:
    """Ask again after the errors of `WAITS`."""
    began = time.monotonic()
    while True:
        try:
            return call()
        except tuple(WAITS) as error:
            longest = next(seconds for kind, seconds in WAITS.items() if isinstance(error, kind))
            if time.monotonic() - began >= longest:
                raise
            time.sleep(LOOK_SECONDS)


def mending(replace: Callable[[], object]) -> Iterator[None]:
    """A turn after each time that the service was asked to `replace` dead engines, until `MEND_SECONDS` have passed.

    A failure that may pass by itself is a turn too; any other is raised.
    """
    end = time.monotonic() + MEND_SECONDS
    while True:
        with contextlib.suppress(*UNDONE, *WAITS, CoordinatorUnreachableError):
            patiently(replace)
        yield
        if time.monotonic() >= end:
            return
        time.sleep(LOOK_SECONDS)
