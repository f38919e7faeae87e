"""Looks at both policies while neither gets other weights."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from omni_rl.errors import WeightsMovedError

T = TypeVar("T")
ATTEMPTS = 5
SYNC_SECONDS = 60.0
"""The seconds after an update for the job's sync to be through: the job may have more updates to make before, and a
client waits for its check only a little longer."""
ASK_AGAIN = 0.2
"""The seconds between two questions whether the engines serve the trainer's weights."""


def between_syncs(
    look: Callable[[], T], version: Callable[[], str], is_served: Callable[[str], bool], syncs: threading.Lock
) -> T:
    """Return what `look` found while no sync ran and the trainer's `version` stayed what it was.

    A look keeps syncs out, but not the trainer's updates: a job has the trainer. After an update the look begins anew,
    when the job's sync is through and `is_served` says that the engines have the trainer's weights; the time until the
    next update is then the longest.

    Raises:
        WeightsMovedError: the trainer learnt during every one of `ATTEMPTS` looks, or its weights were not served
            within `SYNC_SECONDS` after one of them.
    """
    looks, deadline = 0, 0.0
    while looks < ATTEMPTS:
        with syncs:
            before = version()
            if not looks or is_served(before):
                found = look()
                if version() == before:
                    return found
                looks, deadline = looks + 1, time.monotonic() + SYNC_SECONDS
            elif time.monotonic() >= deadline:
                raise WeightsMovedError(
                    f"the trainer learnt during the check, and no sync had brought its weights {SYNC_SECONDS:g} s "
                    "later; sync, then check"
                )
        # The job's sync may still be on its way, and takes the lock only while nobody has it.
        time.sleep(ASK_AGAIN)
    raise WeightsMovedError(
        f"the trainer learnt during each of {ATTEMPTS} checks, which would compare two versions; "
        "check between two steps, or stop the job meanwhile"
    )
