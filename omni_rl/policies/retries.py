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
PASSING: tuple[type[OmniRLError], ...] = (*UNDONE, *WAITS, CoordinatorUnreachableError)
"""The errors after which dead engines are replaced once more."""
REPLACE_SECONDS = 180.0
"""The seconds that dead engines have to get successors: one starts within a minute, and on a busy machine not at the
first try."""
LOOK_SECONDS = 1.0
"""The seconds between two tries."""


def retried(call: Callable[[], T]) -> T:
    """Return what `call` returns. After an error of `WAITS` it is called again, until that error has come for so many
    seconds: then it is raised, as are any other error, and `TakenOverError`, at once."""
    kind: type[OmniRLError] | None = None
    since = 0.0
    while True:
        try:
            return call()
        except tuple(WAITS) as error:
            if isinstance(error, TakenOverError):
                raise  # this coordinator keeps nothing any more
            found = next(each for each in WAITS if isinstance(error, each))
            if found is not kind:
                kind, since = found, time.monotonic()
            if time.monotonic() - since >= WAITS[found]:
                raise
            time.sleep(LOOK_SECONDS)


def replacements(replace: Callable[[], object]) -> Iterator[None]:
    """Have the service `replace` dead engines, and yield after each try, until `REPLACE_SECONDS` have passed.

    `replace` is a call of a `PatientClient`. A failure that may pass by itself counts as a try; any other is raised.
    """
    end = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            replace()
        except TakenOverError:
            raise
        except PASSING:
            pass
        yield
        if time.monotonic() >= end:
            return
        time.sleep(LOOK_SECONDS)
