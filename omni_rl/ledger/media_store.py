"""The media of stored samples, by content: bytes under their blake3, within a quota, for some days, or not at all."""

import contextlib
import os
import re
import stat
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from blake3 import blake3

from omni_rl.errors import MediaStoreError, NotFoundError, TooLargeError

GIB = 1 << 30
DAY = 86400.0
PIECE = 256 << 10
"""Bytes of an item that are read at once."""
MOST = 200_000
"""The most items that are stored, however short: the index is in memory, and takes 300 bytes for each."""
UNFINISHED_SECONDS = 3600.0
"""Seconds after which a file that was begun and not finished belongs to a dead process."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class MediaRules:
    """What the store keeps. With `keep` False media stay out, and `put` only names them. `quota` is in bytes; over it,
    or with more items than `MOST`, what was used least recently is dropped. Media are dropped `days` after their last
    use, or with None never for their age."""

    keep: bool = True
    quota: int = 10 * GIB
    days: float | None = 30.0


class Put(NamedTuple):
    """The result of a `put`. `digest` is blake3 in hex. With `stored` "redacted", the item was named and not stored."""

    digest: str
    stored: Literal["new", "same", "redacted"]


@dataclass
class _Entry:
    size: int
    used: float


class MediaStore:
    """A store in one directory, for one process; any thread may call it. An item is there whole or not at all."""

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
            self._entries = OrderedDict(sorted(self._found().items(), key=lambda item: item[1].used))
        self._bytes = sum(entry.size for entry in self._entries.values())
        self.tidy()

    @property
    def size(self) -> int:
        """The bytes of all media in the store."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    def put(self, content: bytes | memoryview) -> Put:
        """Store an item, durably, unless the rules keep media out; records refer to it by its digest.

        Raises:
            TooLargeError: the item alone is over the quota.
            MediaStoreError: the item cannot be written, for instance because the disk is full.
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
        """Return an item's bytes; the item counts as used now. Raises what `open` raises."""
        with self.open(digest) as file:
            return file.read()

    def open(self, digest: str) -> BinaryIO:
        """Open an item for reading; it counts as used now. The file stays readable if the item is dropped meanwhile.

        Raises:
            NotFoundError: the item was never put, or has been dropped.
            MediaStoreError: the item's bytes have changed on the disk.
        """
        with self._turn:
            if _DIGEST.fullmatch(digest) is None or digest not in self._entries:
                raise NotFoundError(f"media {digest[:64]!r} are not kept: dropped for quota or age, or kept out")
            self._use(digest)
        with contextlib.ExitStack() as opened, self._reported("read"):
            try:
                file = opened.enter_context(self._path(digest).open("rb"))
            except FileNotFoundError:
                self.drop(digest)
                raise NotFoundError(f"media {digest} are not kept any more") from None
            hashed = blake3()
            while piece := file.read(PIECE):
                hashed.update(piece)
            if hashed.hexdigest() == digest:
                file.seek(0)
                opened.pop_all()
                return file
        self.drop(digest)
        raise MediaStoreError(f"media {digest} are damaged in {self.directory}; they were dropped")

    def drop(self, digest: str) -> bool:
        """Drop an item, and return whether it was there."""
        with self._turn:
            return self._drop(digest)

    def tidy(self) -> None:
        """Apply age and quota; the process that has the store open calls it now and then."""
        with self._turn:
            if self.rules.days is not None:
                oldest = time.time() - self.rules.days * DAY
                for digest in [digest for digest, entry in self._entries.items() if entry.used < oldest]:
                    self._drop(digest)
            self._make_room()

    def _make_room(self) -> None:
        while self._bytes > self.rules.quota or len(self._entries) > MOST:
            self._drop(next(iter(self._entries)))

    def _drop(self, digest: str) -> bool:
        entry = self._entries.pop(digest, None)
        if entry is None:
            return False
        self._bytes -= entry.size
        with self._reported("dropped"):
            self._path(digest).unlink(missing_ok=True)
        return True

    def _use(self, digest: str) -> None:
        """Set the time of an item's last use to now. It is the file's own time, so that it outlives the process."""
        entry = self._entries[digest]
        entry.used = time.time()
        self._entries.move_to_end(digest)
        with contextlib.suppress(FileNotFoundError), self._reported("used"):
            os.utime(self._path(digest), (entry.used, entry.used), follow_symlinks=False)

    def _unfinished(self, digest: str, content: bytes | memoryview) -> Path:
        """Return a file in the item's directory that has the item's content on the disk."""
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
        """Return the items that are there from before. Files of a writer that died are removed, other files are left
        alone."""
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
        """Return an item's path. `digest` must be a digest: no name of a client's becomes a path."""
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
