"""Retries of whoever uses the policies, which outlives a coordinator, a bridge or engines that die and come back."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from omni_rl.errors import (
    CoordinatorUnreachableError,
    FencedError,
    JournalError,
    LedgerError,
    OmniRLError,
    QuarantinedError,
    RayUnavailableError,
    SyncRunningError,
    SyncUndecidedError,
    TakenOverError,
    WeightUpdateError,
)

T = TypeVar("T")
WAITS: dict[type[OmniRLError], float] = {
    RayUnavailableError: 180.0,
    SyncRunningError: 600.0,
    LedgerError: 180.0,
    JournalError: 180.0,
}
"""Seconds for which something is asked for again. A bridge that was restarted attaches to every actor, and finishes or
rolls back a sync, before it answers; somebody else may have asked for one; and a full disk is freed by somebody."""
UNDONE = (WeightUpdateError, SyncUndecidedError, FencedError, QuarantinedError)
"""What a sync ends with that changed nothing, or that the next one settles: another may go through."""
REPLACE_SECONDS = 180.0
"""For engines that died to have successors: one starts within a minute, and on a busy machine not the first time."""
LOOK_SECONDS = 1.0


def retried(call: Callable[[], T]) -> T:
    """Return what `call` returns, which is called again after the errors of `WAITS`, as long as each of these says."""
    began = time.monotonic()
    while True:
        try:
            return call()
        except tuple(WAITS) as error:
            if isinstance(error, TakenOverError):
                raise  # this coordinator keeps nothing any more
            longest = next(seconds for kind, seconds in WAITS.items() if isinstance(error, kind))
            if time.monotonic() - began >= longest:
                raise
            time.sleep(LOOK_SECONDS)


def replacements(replace: Callable[[], object]) -> Iterator[None]:
    """Have the service `replace` dead engines, and yield after each time, until `REPLACE_SECONDS` have passed.

    A failure that may pass by itself counts as a time; any other is raised.
    """
    end = time.monotonic() + REPLACE_SECONDS
    while True:
        with contextlib.suppress(*UNDONE, *WAITS, CoordinatorUnreachableError):
            retried(replace)
        yield
        if time.monotonic() >= end:
            return
        time.sleep(LOOK_SECONDS)
