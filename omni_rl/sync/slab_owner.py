"""Owns a run's slabs on one host: makes them, adopts those of an owner that died, removes them at the end."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from omni_rl.closing import Closing
from omni_rl.errors import SlabError, SlabFullError
from omni_rl.locks import FileLock
from omni_rl.sync.manifest import Entry
from omni_rl.sync.ownership import LOCK, SHARED_MEMORY, take
from omni_rl.sync.slab import Slab
from omni_rl.sync.slabs import FILES, RECORD, RunRecord, slab_directory


class SlabOwner(Closing):
    """Owns the slabs of `run` on this host as long as it lives; use it as a context, or `close` it.

    Slabs are files: they outlive a slab owner that dies, and the next one adopts them as they are. (Python's own shared
    memory would be unlinked when its creator dies, and what an engine could roll back to with it.)
    """

    def __init__(self, run: str, places: Iterable[Entry], base: Path = SHARED_MEMORY) -> None:
        """Make the run's slabs, or adopt them. `places` are the tensors that every version of the run consists of.

        Raises:
            SlabBusyError: a living slab owner has them.
            SlabFullError: there is no room for two sets of weights; nothing is left behind.
            SlabError: the slabs are there, but for other tensors.
        """
        self.directory = slab_directory(run, base)
        self.record = RunRecord(run=run, places=tuple(places))
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SlabError(f"{self.directory} cannot be made: {error}") from error
        self._lock: FileLock | None = take(self.directory)
        try:
            self.adopted = self._adopt()
            if not self.adopted:
                self._make()
        except BaseException:
            self._release()
            raise

    def close(self, *, remove: bool = True) -> None:
        """Remove the slabs with everything in their directory; or only release them, for another owner to adopt.

        Processes that map the slabs still see what they held. Idempotent.
        """
        if self._lock is None:
            return
        if remove:
            shutil.rmtree(self.directory, ignore_errors=True)
        self._release()

    def _adopt(self) -> bool:
        """Return whether there are slabs of this run to adopt; one that was removed or cut is made anew."""
        if not (self.directory / RECORD).exists():
            return False
        found = RunRecord.read(self.directory)
        if found != self.record:
            raise SlabError(
                f"{self.directory} holds slabs for other weights than this run {self.record.run!r} has; give the run "
                "another name, or remove the directory"
            )
        for name in FILES:
            Slab.restore(self.directory / name, self.record.nbytes)
        return True

    def _make(self) -> None:
        """Make the slabs. The record comes last: a directory without it was left by an owner that died while it made
        the slabs."""
        try:
            self._clear()
            for name in FILES:
                self._create(name)
            partial = self.directory / f"{RECORD}.partial"
            partial.write_text(self.record.model_dump_json())
            partial.replace(self.directory / RECORD)
        except OSError as error:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise SlabFullError(f"{self.directory} cannot be written: {error}; free some room there") from error
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def _create(self, name: str) -> None:
        path = self.directory / name
        path.with_suffix(".json").unlink(missing_ok=True)
        Slab.create(path, self.record.nbytes).close()

    def _clear(self) -> None:
        for path in self.directory.iterdir():
            if path.name != LOCK:
                path.unlink()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
