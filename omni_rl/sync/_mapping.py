"""Maps files into memory: allocated in full, so that a full file system raises an error instead of a signal, and with
all pages faulted in early."""

import ctypes
import errno
import mmap
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.errors import SlabError, SlabFullError

# Linux has these since 5.14; Python 3.11 does not name them.
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23


def allocate(path: Path, nbytes: int) -> None:
    """Make the file `path` of `nbytes` with all its blocks. A sparse file would kill its writer when the disk fills up.

    Raises `SlabFullError` if there is no room, and `SlabError` if the file exists or cannot be made; nothing is left
    behind then.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise SlabError(f"{path} exists; open it, or remove it first") from None
    except OSError as error:
        raise SlabError(f"{path} cannot be made: {error}") from error
    try:
        free = shutil.disk_usage(path.parent).free
        if nbytes > free:  # else tmpfs would fill all memory before it gives up
            raise OSError(errno.ENOSPC, f"{free} bytes are free")
        os.posix_fallocate(descriptor, 0, max(nbytes, 1))
    except OSError as error:
        path.unlink()
        raise SlabFullError(
            f"{path} needs {nbytes} bytes: {error}; free some, enlarge {path.parent}, or choose another directory"
        ) from error
    finally:
        os.close(descriptor)


class Mapped:
    """A whole file as `bytes`, all of it in memory from the start. Writing to a read-only mapping ends the process
    (SIGSEGV)."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Map the file. Raises `SlabError` if it cannot be mapped."""
        access, populate = (
            (mmap.ACCESS_WRITE, _MADV_POPULATE_WRITE) if writable else (mmap.ACCESS_READ, _MADV_POPULATE_READ)
        )
        try:
            with path.open("r+b" if writable else "rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=access)
                self._inode = os.fstat(file.fileno()).st_ino
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise SlabError(f"{path} cannot be opened: {error}") from error
        self.bytes: NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        try:
            memory.madvise(populate)
        except OSError:
            self.bytes[:: mmap.PAGESIZE].sum()

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a view of the file, which stays mapped as long as the view lives."""
        data = self.bytes[offset : offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))]
        if not data.size:
            return torch.empty(shape, dtype=dtype)
        # torch warns of read-only buffers, but takes them by their address. A stray write then crashes at the
        # place that did it, where a private copy would hide it from everybody.
        buffer = (ctypes.c_ubyte * data.size).from_address(data.ctypes.data)
        buffer.owner = data  # type: ignore[attr-defined]
        return torch.frombuffer(buffer, dtype=dtype).view(shape)

    def is_at(self, path: Path) -> bool:
        """Return whether `path` still names the mapped file, which may have been removed, made anew or cut. Touching a
        page that was cut off ends the process (SIGBUS)."""
        try:
            found = path.stat()
        except OSError:
            return False
        return found.st_ino == self._inode and found.st_size == self.bytes.size

    def close(self) -> None:
        """Unmap the file as soon as no view of it is left. Idempotent."""
        self.bytes = np.empty(0, np.uint8)
