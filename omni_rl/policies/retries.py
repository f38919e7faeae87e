"""Retries calls for jobs that use both policies: a job goes on while a coordinator, a bridge (the process that connects
the coordinator to the Ray actors) or engines die and come back."""

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
"""The seconds for which a call is repeated after each error. RayUnavailableError: a bridge that was restarted attaches
to every actor, and finishes or rolls back a sync, before it answers. SyncRunningError: the sync that somebody else
asked for ends. LedgerError and JournalError: somebody frees a full disk."""
UNDONE = (WeightUpdateError, SyncUndecidedError, FencedError, QuarantinedError)
"""The errors of a sync that changed nothing, or whose outcome the next sync settles: another sync may succeed."""
REPLACE_SECONDS = 180.0
"""The seconds that dead engines have to get successors: one starts within a minute, and on a busy machine not at the
first try."""
LOOK_SECONDS = 1.0
"""The seconds between two tries."""


def retried(call: Callable[[], T]) -> T:
    """Return what `call` returns. After an error of `WAITS` it is called again, unless that error's seconds have passed
    since the first call: then the error is raised, as is any other error, and `TakenOverError`, at once."""
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
        try:
            retried(replace)
        except TakenOverError:
            raise
        except (*UNDONE, *WAITS, CoordinatorUnreachableError):
            pass
        yield
        if time.monotonic() >= end:
            return
        time.sleep(LOOK_SECONDS)
