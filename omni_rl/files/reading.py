"""Reading a directory that may be replaced meanwhile."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from omni_rl.errors import CheckpointError, OmniRLError
from omni_rl.files.writer import same, set_aside

T = TypeVar("T")

READS = 5
"""Attempts; more are of use only where a directory is replaced faster than it is read."""
PAUSE = 0.1
"""Seconds for a writer between two renames, on a file system that has no exchange; a dead one stays there."""


def read_whole(directory: Path, read: Callable[[], T]) -> T:
    """What `read` gives of one and the same state of `directory`: it is called again if that was replaced meanwhile.

    Raises what `read` raises, and `CheckpointError` for a directory that does not keep still.
    """
    for _ in range(READS):
        try:
            opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            if set_aside(directory) is None:
                return read()  # which says what it misses
            time.sleep(PAUSE)
            continue
        try:
            result = read()
            if same(directory, opened):
                return result
        except (OSError, OmniRLError):
            if same(directory, opened):
                raise
        finally:
            os.close(opened)
    if not directory.exists():
        return read()
    raise CheckpointError(f"{directory} was replaced {READS} times while it was read; wait for whoever writes it")
