"""Stores one set of weights in a memory-mapped file: written by one source at a time, sealed, then read without a
copy."""

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.errors import SlabBusyError, SlabError, SlabFullError
from omni_rl.sync._mapping import Mapped, allocate
from omni_rl.sync.checksum import Checksum, as_bytes
from omni_rl.sync.lock import WriterLock
from omni_rl.sync.manifest import Entry, Manifest, Written, end
from omni_rl.sync.nonfinite import NonFinite, count
from omni_rl.sync.pieces import TensorPart, take_all


class Slab:
    """`nbytes` of memory in the file `path`, which outlives the processes that map it; `create` or `open` makes one.

    A source writes every tensor and calls `seal` inside of `writing`. From the start of `writing` to `seal` the slab
    has no manifest, so a source that dies leaves a slab that nobody takes for whole. Several processes may write
    together: one begins and seals, the others join it with the ticket that `begin` returned. Once sealed, `tensors` are
    views of the file: read only, and valid until the next `begin`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = Mapped(path, writable=False)
        self._written: Mapped | None = None
        self._manifest_path = path.with_suffix(".json")
        self._lock = WriterLock(path.with_suffix(".lock"))
        self._claim_path = path.with_suffix(".claim")
        self._places: dict[str, Entry] = {}
        self._viewed: list[tuple[str, int, str, tuple[int, ...]]] = []
        self._views: dict[str, torch.Tensor] = {}

    @classmethod
    def create(cls, path: Path, nbytes: int) -> "Slab":
        """Return a new slab, with every page of it in memory.

        Raises:
            SlabFullError: the file system has not that much room; no file is left.
            SlabError: the file exists, or cannot be made.
        """
        allocate(path, nbytes)
        return cls(path)

    @classmethod
    def restore(cls, path: Path, nbytes: int) -> None:
        """Make a slab anew that was removed or cut; a whole one stays as it is.

        Raises what `create` raises, and `SlabBusyError` if a living process is writing it.
        """
        if _is_whole(path, nbytes):
            return
        lock = WriterLock(path.with_suffix(".lock"))
        lock.take()
        try:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            allocate(path, nbytes)
        finally:
            lock.release()

    @classmethod
    def open(cls, path: Path) -> "Slab":
        """Return an existing slab, mapped and with its pages in memory. Raises `SlabError` if there is none."""
        return cls(path)

    @property
    def nbytes(self) -> int:
        """How many bytes the slab can hold."""
        return self._read.bytes.size

    @property
    def manifest(self) -> Manifest | None:
        """Return what the slab holds, or None while nothing is sealed. Raises `SlabError` if the manifest is
        damaged."""
        try:
            text = self._manifest_path.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SlabError(f"{self._manifest_path} cannot be read: {error}") from error
        return Manifest.parse(text, str(self._manifest_path))

    def sealed(self, run: str | None = None) -> Manifest:
        """Return the slab's manifest. Raises `SlabError` if nothing is sealed, or if it is of another run than
        `run`."""
        manifest = self.manifest
        if manifest is None:
            raise SlabError(f"{self.path} is not sealed: its source has not finished, or died; fill it again")
        if run is not None and manifest.version.run != run:
            raise SlabError(
                f"{self.path} holds weights of run {manifest.version.run!r}, not of {run!r}; use that run's slabs"
            )
        if manifest.nbytes > self.nbytes:
            raise SlabError(f"{self.path} has {self.nbytes} bytes, its manifest states {manifest.nbytes}")
        return manifest

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return a view of the file for each released name, in the manifest's order. Writing to one ends the process
        (SIGSEGV)."""
        entries = self.sealed().entries
        places = [(entry.name, entry.offset, entry.dtype, entry.shape) for entry in entries]
        if places != self._viewed:  # of sync after sync they are the same
            self._views = {
                name: self._read.tensor(offset, getattr(torch, dtype), shape) for name, offset, dtype, shape in places
            }
            self._viewed = places
        return dict(self._views)

    def content(self) -> NDArray[np.uint8]:
        """Return all bytes in use, gaps between tensors included, as a read-only view."""
        return self._read.bytes[: self.sealed().nbytes]

    def check(self) -> tuple[str, ...]:
        """Return the names of the tensors whose bytes do not have the checksum that the manifest states."""
        return tuple(
            entry.name
            for entry in self.sealed().entries
            if str(Checksum.of(self._read.bytes[entry.offset : entry.offset + entry.nbytes])) != entry.checksum
        )

    def nonfinite(self) -> tuple[NonFinite, ...]:
        """Return the tensors that hold NaN or infinity, counted in one pass: for weights whose writer did not count."""
        entries = self.sealed().entries
        held = ((entry, self._read.bytes[entry.offset : entry.offset + entry.nbytes]) for entry in entries)
        counted = (NonFinite(entry.name, *count(data, entry.dtype), entry.elements) for entry, data in held)
        return tuple(found for found in counted if found.nan or found.infinite)

    @contextmanager
    def writing(self, places: tuple[Entry, ...]) -> Iterator[None]:
        """Call `begin`, and `leave` at the end of the context, whatever happens inside."""
        self.begin(places)
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep others from beginning to write inside the context. Raises `SlabBusyError` if a writer has begun."""
        with self._lock.reading():
            yield

    def discard(self) -> None:
        """Make the slab hold nothing. Raises `SlabBusyError` if it is being written."""
        with self.writing(()):
            pass

    def claim(self) -> str:
        """Return a claim: from now on only a writer that shows it in `begin` may write the slab.

        A writer that was asked earlier, and comes late because it was stopped, would else write over weights that are
        served by then. Raises `SlabFullError` if there is no room for a line.
        """
        claim = uuid.uuid4().hex
        try:
            self._claim_path.write_text(claim)
        except OSError as error:
            raise SlabFullError(f"{self._claim_path} cannot be written: {error}; free some room there") from error
        return claim

    def begin(self, places: tuple[Entry, ...], claim: str | None = None) -> str:
        """Start to write tensors at `places`; what the slab held is gone. Returns the ticket for those who join.

        Raises:
            SlabFullError: they need more than the slab has.
            SlabBusyError: a living process is writing, or there was another `claim` since.
        """
        if end(places) > self.nbytes:
            first = next(entry for entry in places if entry.offset + entry.nbytes > self.nbytes)
            raise SlabFullError(
                f"{self.path} has {self.nbytes} bytes, the weights need {end(places)}: {first.name} does not fit; "
                "create the slabs of a run for its largest weights"
            )
        ticket = self._lock.take()
        if claim is not None and claim != self._claim_path.read_text():
            self._lock.release()
            raise SlabBusyError(f"{self.path} was given to another source: this one came late, and writes nothing")
        self._manifest_path.unlink(missing_ok=True)
        self._enter(places)
        return ticket

    def join(self, places: tuple[Entry, ...], ticket: str) -> None:
        """Write along with the process that began. Raises `SlabBusyError` if that process is no longer the writer."""
        self._lock.join(ticket)
        self._enter(places)

    def write_all(self, tensors: Mapping[str, torch.Tensor]) -> Written:
        """Call `write` for whole tensors, in threads."""
        parts = (TensorPart(name, 0, tensor, tensor.dtype) for name, tensor in tensors.items())
        found = take_all(parts, self.write)
        return written({name: found.get(name, Checksum.total(())) for name in tensors}, self._places.values())

    def write(self, name: str, tensor: torch.Tensor, start: int = 0) -> Checksum:
        """Copy a tensor, or a contiguous part that begins `start` elements into it; return its share of the checksum.

        Raises:
            SlabError: writing has not begun, `name` has no place, the dtype is another, or the part does not fit.
        """
        entry = self._place(name)
        dtype = str(tensor.dtype).removeprefix("torch.")
        whole = start == 0 and tuple(tensor.shape) == entry.shape
        if dtype != entry.dtype or not (whole or 0 <= start <= entry.elements - tensor.numel()):
            raise SlabError(
                f"{name} has the place of {entry.dtype} {list(entry.shape)}; {dtype} {list(tensor.shape)} from element "
                f"{start} on does not fit there"
            )
        return self.write_bytes(name, as_bytes(tensor), start * tensor.element_size())

    def write_bytes(self, name: str, data: NDArray[np.uint8], start: int = 0) -> Checksum:
        """Copy the bytes of a tensor from byte `start` on, as `write` does.

        The checksum is of the source's bytes, so `check` also finds what went wrong on the way into the slab.
        """
        entry = self._place(name)
        if self._written is None or not 0 <= start <= entry.nbytes - data.size:
            raise SlabError(f"{name} has {entry.nbytes} bytes; {data.size} from byte {start} on do not fit there")
        target = self._written.bytes[entry.offset + start :][: data.size]
        return Checksum.of_copied(data, target, start, entry.dtype)

    def seal(self, manifest: Manifest) -> None:
        """Publish what was written, in one step, and let the next writer in."""
        partial = self._manifest_path.with_suffix(f".{os.getpid()}.partial")
        try:
            partial.write_text(manifest.model_dump_json())
            partial.replace(self._manifest_path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise SlabFullError(f"{self._manifest_path} cannot be written: {error}") from error
        self.leave()

    def leave(self) -> None:
        """Stop writing; without a `seal` before it, the slab holds nothing. Idempotent."""
        self._places = {}
        self._lock.release()

    def close(self) -> None:
        """Close the file; the memory is unmapped when the last view of it is gone. Idempotent."""
        self.leave()
        self._viewed, self._views = [], {}
        self._read.close()
        if self._written is not None:
            self._written.close()

    def is_current(self) -> bool:
        """Return whether the slab's path still names the file that is mapped here, in its whole length."""
        return self._read.is_at(self.path)

    def remove(self) -> None:
        """Delete the file and what belongs to it. Processes that map it still see what it held."""
        self.close()
        for path in (self.path, self._manifest_path, self._claim_path, self.path.with_suffix(".lock")):
            path.unlink(missing_ok=True)

    def _place(self, name: str) -> Entry:
        try:
            return self._places[name]
        except KeyError:
            raise SlabError(f"{self.path} has no place for {name}; begin with the places of all tensors") from None

    def _enter(self, places: tuple[Entry, ...]) -> None:
        self._written = self._written or Mapped(self.path, writable=True)
        self._places = {entry.name: entry for entry in places}


def _is_whole(path: Path, nbytes: int) -> bool:
    try:
        return path.stat().st_size >= nbytes
    except OSError:
        return False


def written(found: Mapping[str, Checksum], places: Iterable[Entry]) -> Written:
    """Return what the checksums of whole tensors, by name, say of the tensors at `places`."""
    nonfinite = (
        NonFinite(entry.name, found[entry.name].nan, found[entry.name].infinite, entry.elements)
        for entry in places
        if found[entry.name].nan or found[entry.name].infinite
    )
    return Written({name: str(checksum) for name, checksum in found.items()}, tuple(nonfinite))


class OpenSlabs:
    """Slabs that a process uses again and again: mapped once, and anew when the file at a path is another one."""

    def __init__(self) -> None:
        self._slabs: dict[Path, Slab] = {}

    def at(self, path: Path) -> Slab:
        """Return the slab at `path`. Raises `SlabError` if there is none."""
        slab = self._slabs.get(path)
        if slab is None or not slab.is_current():
            if slab is not None:
                slab.close()
                del self._slabs[path]
            slab = self._slabs[path] = Slab.open(path)
        return slab

    def close(self) -> None:
        """Close all of them. Idempotent."""
        while self._slabs:
            self._slabs.popitem()[1].close()
