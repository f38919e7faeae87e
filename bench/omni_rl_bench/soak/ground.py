"""Makes the ground that a soak runs on, so that its faults reach nothing else: a small /dev/shm, a disk, and a
clock."""

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omni_rl_bench.result import BenchmarkError

CLONE_NEWNS = 0x00020000
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108, a file system of this process and its children alone
SHARED_MEMORY_MIB, DISK_MIB = 1024, 1024
PIECE = 2**16


class Disk:
    """A file system that can be filled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Write until there is no room left."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(PIECE))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


class Clock:
    """Python's wall clock (`time.time`) in processes that have `environment`; the machine's own clock is not touched.

    The monotonic clock, and the times of files, are the machine's, as they are where somebody sets a wall clock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(struct.pack("d", 0.0))

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that is to have this clock."""
        before = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        path = os.pathsep.join([str(Path(__file__).with_name("clock")), *before])
        return {"PYTHONPATH": path, "SOAK_CLOCK": str(self._path)}

    def set(self, seconds: float) -> None:
        """Set the clock so many seconds ahead of the machine's."""
        with self._path.open("r+b") as file:
            file.write(struct.pack("d", seconds))


@dataclass(frozen=True)
class Ground:
    """The ground that a soak runs on. `disk` is the ledger's."""

    shared_memory: Disk
    disk: Disk
    clock: Clock


def require_root() -> None:
    """Raise `BenchmarkError` for any user but root, who alone can have all of a soak's faults."""
    if os.geteuid() != 0:
        raise BenchmarkError("only root may mount a /dev/shm and a disk of its own, which a soak fills: run it as root")


@contextlib.contextmanager
def own_ground(directory: Path) -> Iterator[Ground]:
    """Make a small /dev/shm and a small disk in `directory`, for this process and those that it starts, and a clock.

    The mounts are in a namespace of the calling thread, from which other threads and processes have to be started; they
    go with the last of them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise BenchmarkError(f"no mount namespace: {errno.errorcode[ctypes.get_errno()]}")
    _run("mount", "--make-rprivate", "/")
    _mount(SHARED_MEMORY, SHARED_MEMORY_MIB)
    disk = directory / "disk"
    disk.mkdir()
    _mount(disk, DISK_MIB)
    try:
        yield Ground(Disk(SHARED_MEMORY), Disk(disk), Clock(directory / "clock"))
    finally:
        for path in (disk, SHARED_MEMORY):
            _run("umount", "--lazy", str(path))


def _mount(path: Path, mib: int) -> None:
    _run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=1777", "tmpfs", str(path))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603, made here
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)}: {done.stderr.strip()}")
