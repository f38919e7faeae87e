"""Reads a directory that may be replaced meanwhile."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from omni_rl.errors import CheckpointError, OmniRLError
from omni_rl.files.writer import same, set_aside

T = TypeVar("T")

READS = 5
"""The most attempts to read a directory; more help only where it is replaced faster than it is read."""
PAUSE = 0.1
"""Seconds to wait for a writer between its two renames, on a file system that has no exchange. A writer that was killed
there leaves the directory absent."""


def read_whole(directory: Path, read: Callable[[], T]) -> T:
    """Return what `read` returns for one and the same state of `directory`; `read` is called again if the directory was
    replaced meanwhile.

    Raises what `read` raises, and `CheckpointError` for a directory that is replaced at every attempt.
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
