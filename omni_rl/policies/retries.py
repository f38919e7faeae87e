"""Retries calls for users of the policies, who outlive a coordinator, a bridge or engines that die and come back."""

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
"""The seconds for which a call is repeated after each error. A bridge that was restarted attaches to every actor, and
finishes or rolls back a sync, before it answers; somebody else may have asked for a sync; and a full disk is freed by
somebody."""
UNDONE = (WeightUpdateError, SyncUndecidedError, FencedError, QuarantinedError)
"""The errors of a sync that changed nothing, or that the next one settles: another may succeed."""
REPLACE_SECONDS = 180.0
"""The seconds that dead engines have to get successors: one starts within a minute, and on a busy machine not at the
first try."""
LOOK_SECONDS = 1.0


def retried(call: Callable[[], T]) -> T:
    """Return what `call` returns; after an error of `WAITS` it is called again, until that error's seconds have
    passed."""
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
    """Have the service `replace` dead engines, and yield after each try, until `REPLACE_SECONDS` have passed.

    A failure that may pass by itself counts as a try; any other is raised.
    """
    end = time.monotonic() + REPLACE_SECONDS
    while True:
        with contextlib.suppress(*UNDONE, *WAITS, CoordinatorUnreachableError):
            retried(replace)
        yield
        if time.monotonic() >= end:
            return
        time.sleep(LOOK_SECONDS)
