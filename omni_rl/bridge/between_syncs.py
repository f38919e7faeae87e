"""Looks at both policies while neither gets other weights."""

import threading
from collections.abc import Callable
from typing import TypeVar

from omni_rl.errors import WeightsMovedError

T = TypeVar("T")
ATTEMPTS = 5


def between_syncs(look: Callable[[], T], version: Callable[[], str], syncs: threading.Lock) -> T:
    """Return what `look` found while no sync ran and the trainer's `version` stayed what it was.

    A look keeps syncs out, but not the trainer's updates: a job has the trainer. After an update the look begins anew,
    when the job's sync is through; the time until the next update is then the longest.

    Raises:
        WeightsMovedError: the trainer learnt during every one of `ATTEMPTS` looks.
    """
    for _ in range(ATTEMPTS):
        with syncs:
            before = version()
            found = look()
            if version() == before:
                return found
    raise WeightsMovedError(
        f"the trainer learnt during each of {ATTEMPTS} checks, which would compare two versions; "
        "check between two steps, or stop the job meanwhile"
    )
