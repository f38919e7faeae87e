"""Tells which process owns the slabs of a run on this host; imports no torch, so that `omni-rl doctor` can look."""

import os
from pathlib import Path

from omni_rl.errors import SlabBusyError, SlabError, SlabFullError
from omni_rl.locks import FileLock, LockHeldError, is_free

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108, directories in it are made for their owner alone
"""The directory where slabs lie by default: memory, not a disk."""
PREFIX = "omni-rl-"
LOCK = "owner.lock"


def take(directory: Path) -> FileLock:
    """Own the slabs in `directory` until the returned lock is closed, or this process ends.

    Raises `SlabBusyError` if a living process owns them, `SlabError` if there is no such directory, `SlabFullError` if
    its file system has no room for a line.
    """
    try:
        lock = FileLock(directory / LOCK)
    except OSError as error:
        raise SlabError(f"{directory} cannot be used: {error}") from error
    try:
        lock.take(str(os.getpid()))
    except LockHeldError as error:
        lock.close()
        raise SlabBusyError(
            f"{directory} belongs to another slab owner (process {error.holder or 'unknown'}), which lives; end that "
            "one first"
        ) from error
    except OSError as error:
        lock.close()
        raise SlabFullError(f"{directory / LOCK} cannot be written: {error}; free some room there") from error
    return lock


def abandoned(base: Path) -> list[Path]:
    """Return the directories of runs in `base` that no living slab owner owns; they hold memory until they are
    removed."""
    return [path for path in sorted(base.glob(f"{PREFIX}*")) if path.is_dir() and not _owned(path)]


def _owned(directory: Path) -> bool:
    try:
        return not is_free(directory / LOCK)
    except FileNotFoundError:
        return False
    except OSError:  # another user's: not ours to judge
        return True
