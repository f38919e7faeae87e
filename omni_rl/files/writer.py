"""Lets one process at a time write a directory, and cleans up what killed writers have left beside it.

While a directory is written it is called `.NAME.UUID.partial`, and an older one that is about to be deleted may be
called `.NAME.UUID.replaced`.
"""

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omni_rl.errors import CheckpointError


@contextmanager
def one_writer(target: Path) -> Iterator[None]:
    """Wait for the lock file beside `target`, hold it for the block, and clean up what killed writers left. The kernel
    frees a dead writer's lock. Raises `CheckpointError` if the parent directory cannot be written."""
    path = target.parent / f".{target.name}.lock"
    while True:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CheckpointError(f"cannot write to {target.parent}: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: nobody can tell what is left over from what is being written
            locked = False
            break
        locked = True
        if same(path, descriptor):  # else the writer before deleted the file, and another may have made a new one
            break
        os.close(descriptor)
    try:
        if locked:
            try:
                _recover(target)
            except OSError as error:
                raise CheckpointError(f"cannot write to {target.parent}: {error}") from error
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)


def _recover(target: Path) -> None:
    aside = set_aside(target)
    if aside is not None and not target.exists():
        aside.rename(target)
    for path in _left(target, "partial|replaced"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(target: Path) -> Path | None:
    """Return where the former directory of `target` is, if a writer was killed after it had moved that aside and before
    it put the new one there; None if nothing was moved aside."""
    return next(_left(target.resolve(), "replaced"), None)


def _left(target: Path, kinds: str) -> Iterator[Path]:
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}\.({kinds})")
    with contextlib.suppress(FileNotFoundError, PermissionError):
        yield from [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]


def beside(target: Path, kind: str) -> Path:
    """Return a new path in the parent of `target`, whose name tells the next writer that a killed one has left it.
    `kind` is partial or replaced."""
    return target.parent / f".{target.name}.{uuid.uuid4().hex}.{kind}"


def same(path: Path, opened: int) -> bool:
    """Return whether `path` leads to the file or directory of an open descriptor; while that is open, nothing else can
    get its inode's number."""
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False
