"""Directories that appear whole, or take another one's place at once: a reader finds the old or the new, never half."""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from omni_rl.errors import CheckpointError, OmniRLError
from omni_rl.files.exchange import exchange

T = TypeVar("T")

Keep = Callable[[str, frozenset[str]], bool]
"""Whether an entry of this name stays in a directory for which the given names were written anew."""

READS = 5
"""Attempts at reading a directory that is replaced meanwhile: more only where it is replaced faster than it is read."""


@contextmanager
def atomic_directory(target: Path, keep: Keep | None = None) -> Iterator[Path]:
    """A directory to write into; it becomes `target`, durable and complete, or `target` stays as it was.

    Without `keep`, `target` must not exist. With it, the new directory takes an existing one's place, and brings along
    what `keep` says and was not written anew. Of several writers of one target each waits for the one before it.

    Raises:
        CheckpointError: `target` exists or cannot be replaced (the message says why), or the disk is full.
    """
    target = target.resolve()  # a symbolic link stays, and leads to the new directory
    with _one_writer(target):
        _check(target, keep)
        try:
            # In the same parent: a rename is atomic only within one file system.
            partial = _beside(target, "partial")
            partial.mkdir()
        except OSError as error:
            raise CheckpointError(f"cannot write to {target.parent}: {error}") from error
        try:
            yield partial
            for path in [*partial.rglob("*"), partial]:
                _fsync(path)
            if keep is not None and target.exists():
                _bring(target, partial, keep)
            _put(partial, target)
        except OSError as error:
            raise CheckpointError(f"cannot write {target}: {error}; what was there before is as it was") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # what was begun, or what was replaced


def read_whole(directory: Path, read: Callable[[], T]) -> T:
    """What `read` gives of one and the same state of `directory`: it is called again if that was replaced meanwhile.

    Raises what `read` raises, and `CheckpointError` for a directory that does not keep still.
    """
    for _ in range(READS):
        try:
            opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return read()  # which says what it misses
        try:
            # The number of a directory that is held open is given to no other one.
            result = read()
            if _same(directory, opened):
                return result
        except (OSError, OmniRLError):
            if _same(directory, opened):
                raise
        finally:
            os.close(opened)
    raise CheckpointError(f"{directory} was replaced {READS} times while it was read; wait for whoever writes it")


def _same(path: Path, opened: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def _check(target: Path, keep: Keep | None) -> None:
    if not target.exists():
        return
    if keep is None:
        raise CheckpointError(f"{target} exists; a checkpoint is never overwritten: choose another directory")
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file; give a directory")
    device = target.stat().st_dev
    for path in [target, *target.rglob("*")]:
        # What is mounted can neither be renamed nor linked, and must not be deleted with the old directory.
        if path.lstat().st_dev != device or path.is_mount():
            raise CheckpointError(f"{path} is a mount point, so {target} cannot be replaced; save to a directory in it")


def _bring(old: Path, new: Path, keep: Keep) -> None:
    """Give what stays a place in the new directory too, before anything is replaced: it is never absent."""
    written = frozenset(path.name for path in new.iterdir())
    for entry in old.iterdir():
        if entry.name in written or not keep(entry.name, written):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(entry, new / entry.name)
    new.chmod(stat.S_IMODE(old.stat().st_mode))
    for directory in [new, *(path for path in new.rglob("*") if path.is_dir() and not path.is_symlink())]:
        _fsync(directory)


def _link(source: str | Path, target: str | Path) -> None:
    """A hard link costs nothing, whatever the size, and leaves a file that somebody writes to the same one."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _put(new: Path, target: Path) -> None:
    here = _working_directory()
    if not target.exists():
        new.rename(target)
    elif not exchange(new, target):
        # NFS among others cannot exchange. A process that is killed between these two renames leaves no target; the
        # next writer puts the old one back first.
        aside = _beside(target, "replaced")
        target.rename(aside)
        try:
            new.rename(target)
        except OSError:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _fsync(target.parent)
    if here is not None and here.is_relative_to(target):
        with contextlib.suppress(OSError):
            os.chdir(here)  # this process stood in the directory that has just gone


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except FileNotFoundError:  # somebody deleted it
        return None


@contextmanager
def _one_writer(target: Path) -> Iterator[None]:
    """Hold the lock beside `target`, and clear away what killed writers left. The kernel frees a dead one's lock."""
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
        if _same(path, descriptor):  # else the one before deleted it, and somebody may have made another
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
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}\.(partial|replaced)")
    left = [path for path in target.parent.iterdir() if ours.fullmatch(path.name)]
    for path in left:
        if path.suffix == ".replaced" and not target.exists():
            path.rename(target)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _beside(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.{uuid.uuid4().hex}.{what}"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
