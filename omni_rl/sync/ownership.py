"""Which process owns the slabs of a run on this host; imports no torch, so that `omni-rl doctor` can look."""

import fcntl
import os
from pathlib import Path

from omni_rl.errors import SlabBusyError, SlabError, SlabFullError

PREFIX = "omni-rl-"
LOCK = "keeper.lock"


def take(directory: Path) -> int:
    """Own the slabs in `directory` until the returned descriptor is closed, or this process ends.

    Raises `SlabBusyError` if a living process owns them, `SlabError` if there is no such directory, `SlabFullError` if
    its file system has no room for a line.
    """
    try:
        descriptor = os.open(directory / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SlabError(f"{directory} cannot be used: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode() or "unknown"
        os.close(descriptor)
        raise SlabBusyError(
            f"{directory} belongs to another keeper (process {holder}), which lives; end that one first"
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise SlabFullError(f"{directory / LOCK} cannot be written: {error}; free some room there") from error
    return descriptor


def abandoned(base: Path) -> list[Path]:
    """Directories of runs in `base` that no living keeper owns; they hold memory until they are removed."""
    return [path for path in sorted(base.glob(f"{PREFIX}*")) if path.is_dir() and not _owned(path)]


def _owned(directory: Path) -> bool:
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:  # another user's: not ours to judge
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
