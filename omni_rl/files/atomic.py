"""Directories that appear whole, or take another one's place at once: a reader finds the old or the new one."""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from omni_rl.errors import CheckpointError
from omni_rl.files.exchange import exchange
from omni_rl.files.writer import beside, one_writer

Keep = Callable[[str, frozenset[str]], bool]
"""Says whether the entry of this name stays in a directory for which the given names were written anew."""


@contextmanager
def atomic_directory(target: Path, keep: Keep | None = None) -> Iterator[Path]:
    """Yield a directory to write into; it becomes `target`, durable and complete, or `target` stays as it was.

    Without `keep`, `target` must not exist. With it, the new directory takes an existing one's place, and brings along
    the entries that `keep` says stay and that were not written anew. Of several writers of one target each waits for
    the one before it.

    Raises:
        CheckpointError: `target` exists or cannot be replaced (the message says why), or the disk is full.
    """
    target = target.resolve()  # a symbolic link stays, and leads to the new directory
    _check(target, keep)
    with one_writer(target):
        _check(target, keep)  # the writer before this one may have made it
        try:
            # In the same parent: a rename is atomic only within one file system.
            partial = beside(target, "partial")
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
        with contextlib.suppress(FileNotFoundError):  # somebody else deletes files there
            if path.lstat().st_dev != device or path.is_mount():
                raise CheckpointError(f"{path} is a mount point, so {target} cannot be replaced; choose another one")


def _bring(old: Path, new: Path, keep: Keep) -> None:
    """Give every entry that stays a place in the new directory too, before anything is replaced, so that it is never
    absent."""
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
    """Make `target` a hard link to `source`, or a copy where there can be none.

    A link costs nothing, whatever the size, and a process that goes on writing to the file writes to both names.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        return  # somebody deleted it meanwhile
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _put(new: Path, target: Path) -> None:
    here = _working_directory()
    if not target.exists():
        new.rename(target)
    elif not exchange(new, target):
        # NFS among others cannot exchange. A process that is killed between these two renames leaves no target; the
        # next writer puts the old one back first.
        aside = beside(target, "replaced")
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


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
