"""The directory in which a service keeps everything that outlives its processes, and private files in it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from omni_rl.errors import ConfigError, OmniRLError
from omni_rl.locks import FileLock, LockHeldError


def prepared(directory: Path, setting: str) -> Path:
    """Return the directory's absolute path, and make the directory if it is absent. A new one can be entered by its
    owner alone: it gets tokens, logs and what runs post.

    Raises `ConfigError`, which names `setting`, if the directory cannot be made or written to.
    """
    directory = directory.resolve()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{setting} {directory} cannot be made: {error.strerror}") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"{setting} {directory} cannot be written to")
    return directory


@contextlib.contextmanager
def held(path: Path, refusal: Callable[[str], OmniRLError]) -> Iterator[None]:
    """Hold the lock of this file for this process alone. Where another process has it, raises what `refusal` makes of
    that process's id."""
    with contextlib.closing(FileLock(path)) as lock:
        try:
            lock.take(str(os.getpid()))
        except LockHeldError as error:
            raise refusal(error.holder) from None
        yield


def write_new_private(path: Path, text: str) -> None:
    """Make a file that only its owner may read. Raises `FileExistsError`."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that only its owner may read; a reader sees the old text or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    write_new_private(partial, text)
    partial.replace(path)
