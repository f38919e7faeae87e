"""The media of kept samples, by content: bytes under their blake3, within a quota, for some days, or not at all."""

import contextlib
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from blake3 import blake3

from omni_rl.errors import MediaStoreError, NotFoundError, TooLargeError

GIB = 1 << 30
DAY = 86400.0
UNFINISHED_SECONDS = 3600.0
"""After so long a file that was begun and not finished is one of a dead process."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class MediaRules:
    """`keep` False keeps media out: `put` then only names them. `quota` in bytes; over it what was used least recently
    goes. `days` after their last use media go; None: never for their age."""

    keep: bool = True
    quota: int = 10 * GIB
    days: float | None = 30.0


class Put(NamedTuple):
    """`digest`: blake3 in hex. `stored` "redacted": it was named and not kept."""

    digest: str
    stored: Literal["new", "same", "redacted"]


@dataclass
class _Entry:
    size: int
    used: float


class MediaStore:
    """One directory, one process; any thread may call. An item is there whole or not at all."""

    def __init__(self, directory: Path, rules: MediaRules | None = None) -> None:
        """Open or create the store, and apply its rules to what is in it.

        Raises:
            MediaStoreError: the directory cannot be used.
        """
        self.directory = directory
        self.rules = rules or MediaRules()
        self._turn = threading.Lock()
        with self._reported("opened"):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._entries = self._found()
        self._bytes = sum(entry.size for entry in self._entries.values())
        self.tidy()

    @property
    def size(self) -> int:
        """Bytes of all media in the store."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    def put(self, content: bytes | memoryview) -> Put:
        """Keep an item, durably, unless media are kept out; records refer to it by its digest.

        Raises:
            TooLargeError: it alone is over the quota.
            MediaStoreError: the disk is full, say.
        """
        digest, size = blake3(content).hexdigest(), len(content)
        if not self.rules.keep:
            return Put(digest, "redacted")
        if size > self.rules.quota:
            raise TooLargeError(f"a media item of {size:,} bytes; the store holds {self.rules.quota:,}")
        with self._turn:
            if digest in self._entries:
                self._use(digest)
                return Put(digest, "same")
        with self._reported("written"):
            unfinished = self._unfinished(digest, content)
            try:
                with self._turn:
                    if digest in self._entries:
                        return Put(digest, "same")
                    os.replace(unfinished, self._path(digest))
                    self._entries[digest] = _Entry(size, time.time())
                    self._bytes += size
                    self._make_room()
            finally:
                unfinished.unlink(missing_ok=True)
            _flush(self._path(digest).parent)
        return Put(digest, "new")

    def get(self, digest: str) -> bytes:
        """An item's bytes; it counts as used now.

        Raises:
            NotFoundError: it was never put, or is not kept any more.
            MediaStoreError: its bytes have changed on the disk.
        """
        with self._turn:
            if _DIGEST.fullmatch(digest) is None or digest not in self._entries:
                raise NotFoundError(f"media {digest[:64]!r} are not kept: dropped for quota or age, or kept out")
            self._use(digest)
        with self._reported("read"):
            try:
                content = self._path(digest).read_bytes()
            except FileNotFoundError:
                self.drop(digest)
                raise NotFoundError(f"media {digest} are not kept any more") from None
        if blake3(content).hexdigest() != digest:
            self.drop(digest)
            raise MediaStoreError(f"media {digest} are damaged in {self.directory}; they were dropped")
        return content

    def drop(self, digest: str) -> bool:
        """Forget an item; whether it was there."""
        with self._turn:
            return self._drop(digest)

    def tidy(self) -> None:
        """Apply age and quota; whoever keeps the store open calls it now and then."""
        with self._turn:
            if self.rules.days is not None:
                oldest = time.time() - self.rules.days * DAY
                for digest in [digest for digest, entry in self._entries.items() if entry.used < oldest]:
                    self._drop(digest)
            self._make_room()

    def _make_room(self) -> None:
        while self._bytes > self.rules.quota:
            self._drop(min(self._entries, key=lambda digest: self._entries[digest].used))

    def _drop(self, digest: str) -> bool:
        entry = self._entries.pop(digest, None)
        if entry is None:
            return False
        self._bytes -= entry.size
        with self._reported("dropped"):
            self._path(digest).unlink(missing_ok=True)
        return True

    def _use(self, digest: str) -> None:
        """The time of use is the file's own, so that it outlives the process."""
        entry = self._entries[digest]
        entry.used = time.time()
        with contextlib.suppress(FileNotFoundError), self._reported("used"):
            os.utime(self._path(digest), (entry.used, entry.used), follow_symlinks=False)

    def _unfinished(self, digest: str, content: bytes | memoryview) -> Path:
        """A file beside the item's place that has its content on the disk."""
        directory = self._path(digest).parent
        directory.mkdir(exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=directory, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            os.unlink(name)
            raise
        return Path(name)

    def _found(self) -> dict[str, _Entry]:
        """What is there from before; files of a writer that died are removed, others are left alone."""
        entries = {}
        for path in self.directory.glob("[0-9a-f][0-9a-f]/*"):
            status = path.lstat()
            is_item = _DIGEST.fullmatch(path.name) and path.parent.name == path.name[:2]
            if is_item and stat.S_ISREG(status.st_mode):
                entries[path.name] = _Entry(status.st_size, status.st_mtime)
            elif path.name.startswith(".") and time.time() - status.st_mtime > UNFINISHED_SECONDS:
                path.unlink(missing_ok=True)
        return entries

    def _path(self, digest: str) -> Path:
        """Only ever asked for a digest: nothing a client names becomes a path."""
        assert _DIGEST.fullmatch(digest)
        return self.directory / digest[:2] / digest

    @contextlib.contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise MediaStoreError(f"the media store {self.directory} cannot be {what}: {error.strerror}") from error


def _flush(directory: Path) -> None:
    """Put the directory's entries on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
