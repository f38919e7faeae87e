"""Manages the two slabs of a run on one host: one holds what is served, the other takes what comes next."""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from omni_rl.errors import ConfigError, NonFiniteWeightsError, SlabError, SourceError
from omni_rl.sync.manifest import Entry, Manifest, end
from omni_rl.sync.nonfinite import NonFinite, told
from omni_rl.sync.ownership import PREFIX, SHARED_MEMORY, abandoned
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import OpenSlabs, Slab
from omni_rl.sync.sources import Source
from omni_rl.sync.transaction import Filled
from omni_rl.sync.transport import SlabTransport, WeightTransport

RECORD = "run.json"
FILES = ("slab-0.weights", "slab-1.weights")
INBOX = "inbox.weights"
"""The file name of a third slab, made when a process that is not ours first publishes: that process cannot know which
of the two is served."""
NAMES_IN_MESSAGE = 10
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RunRecord(BaseModel):
    """The content of `run.json`: whose slabs these are, and the tensors that every version of the run consists of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    run: str
    places: tuple[Entry, ...]

    @classmethod
    def read(cls, directory: Path) -> "RunRecord":
        """Read the record in `directory`. Raises `SlabError` if there is none."""
        path = directory / RECORD
        try:
            return cls.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise SlabError(f"{directory} holds no slabs; start the run's slab owner on this host first") from None
        except (OSError, ValidationError) as error:
            raise SlabError(f"{path} cannot be used: {error}; remove the directory and start the run anew") from error

    @property
    def nbytes(self) -> int:
        return end(self.places)

    def check(self, places: Iterable[Entry], what: str) -> None:
        """Raise `SourceError`, naming tensors, unless `what` has exactly the run's tensors, in their dtypes and
        shapes."""
        expected = {entry.name: entry for entry in self.places}
        found = {entry.name: entry for entry in places}
        wrong = [
            f"{name} is {entry.dtype} {list(entry.shape)}, not {expected[name].dtype} {list(expected[name].shape)}"
            for name, entry in sorted(found.items())
            if name in expected and (entry.dtype, entry.shape) != (expected[name].dtype, expected[name].shape)
        ]
        problems = [
            *_listed("missing", sorted(expected.keys() - found.keys())),
            *_listed("unexpected", sorted(found.keys() - expected.keys())),
            *_listed("other", wrong),
        ]
        if problems:
            raise SourceError(
                f"{what} does not have the weights of run {self.run!r}: {'; '.join(problems)}. Give every released "
                "tensor under its released name"
            )


class SlabPair:
    """A run's slabs, as a coordinator uses them; `SlabOwner` makes them."""

    def __init__(self, directory: Path, transport: WeightTransport | None = None) -> None:
        """Open the slabs. Raises `SlabError` if `directory` holds none. `transport` brings weights to other hosts."""
        self.directory = directory
        self.record = RunRecord.read(directory)
        self._transport = transport or SlabTransport()
        self._open = OpenSlabs()

    @property
    def paths(self) -> tuple[Path, Path]:
        first, second = (self.directory / name for name in FILES)
        return first, second

    def at(self, path: str) -> Slab:
        """Return the slab at `path`, which is one of the two. Raises `SlabError` if it is not, or is gone."""
        if Path(path) not in self.paths:
            raise SlabError(f"{path} is no slab of run {self.record.run!r}, whose slabs are in {self.directory}")
        return self._open.at(Path(path))

    def restored(self, path: str) -> Slab:
        """Return the slab at `path`, made anew if it was removed or cut. Raises what `Slab.restore` raises."""
        if Path(path) in self.paths:
            Slab.restore(Path(path), self.record.nbytes)
        return self.at(path)

    def idle(self, active: SlabRef | None) -> str:
        """Return the path of the slab that may be overwritten: the one that does not hold `active`."""
        first, second = map(str, self.paths)
        return second if active is not None and active.path == first else first

    def fill(self, path: str, source: Source, *, allow_nonfinite: bool = False) -> Filled:
        """Let `source` write all its weights and seal them, and bring them to the other hosts.

        Raises:
            SlabError and its kinds: the slab is being written, or was removed or cut and there is no room for another.
            SourceError: the source failed, or has other weights than the run; nothing is sealed.
            NonFiniteWeightsError: the weights hold NaN or infinity, which is not allowed; nothing is sealed.
        """
        slab = self.restored(path)
        slab.claim()
        manifest = source.fill(slab)
        nonfinite = slab.nonfinite() if manifest.nonfinite is None else manifest.nonfinite
        try:
            self._accept(manifest, type(source).__name__)
            if nonfinite and not allow_nonfinite:
                raise _refused(manifest, nonfinite)
        except (SourceError, NonFiniteWeightsError):
            slab.discard()
            raise
        self._transport.stage(slab)
        ref = SlabRef(path, str(manifest.version))
        nbytes = sum(entry.nbytes for entry in manifest.entries)
        return Filled(ref, len(manifest.entries), nbytes, manifest.origin, told(nonfinite))

    @property
    def pushes(self) -> bool:
        """Whether `push` writes into the engines; else they copy from their host's slab."""
        return self._transport.pushes

    def push(self) -> None:
        """Write what was filled last into the engines. Raises `WeightUpdateError`."""
        self._transport.push()

    def holds(self, slab: SlabRef) -> bool:
        """Return whether the slab is there, sealed with that version, and undamaged, on every host."""
        with contextlib.suppress(SlabError):
            here = self.at(slab.path)
            if str(here.sealed().version) == slab.version and not here.check():
                return self._transport.holds(slab)
        return False

    def close(self) -> None:
        """Close the files. Idempotent."""
        self._open.close()

    def _accept(self, manifest: Manifest, what: str) -> None:
        if manifest.version.run != self.record.run:
            raise SourceError(
                f"{what} has weights of run {manifest.version.run!r}, these slabs are of run {self.record.run!r}"
            )
        self.record.check(manifest.entries, f"{what} ({manifest.version})")


ON_HOST = "-on-"
"""The part of a slab directory's name between the run and the host, where it is another host's than the bridge's."""


def slab_directory(run: str, base: Path = SHARED_MEMORY) -> Path:
    """Return where the slabs of `run` lie on every host. Raises `ConfigError` for a name that is no file name."""
    if not _RUN.fullmatch(run):
        raise ConfigError(f"run {run!r}: use letters, digits, '.', '_' and '-', at most 64, beginning with a letter")
    return base / f"{PREFIX}{run}"


def runs_at(base: Path = SHARED_MEMORY) -> list[str]:
    """Return the runs that have slabs in `base`, with a living slab owner, and that this user may read."""
    dead = set(abandoned(base))
    found = (path for path in sorted(base.glob(f"{PREFIX}*")) if path not in dead and os.access(path / RECORD, os.R_OK))
    return [path.name.removeprefix(PREFIX) for path in found]


def _refused(manifest: Manifest, nonfinite: tuple[NonFinite, ...]) -> NonFiniteWeightsError:
    tensors = told(nonfinite)
    return NonFiniteWeightsError(
        f"the weights {manifest.version} are not finite: {'; '.join(tensors)}. Go back to others, or sync with "
        "allow_nonfinite",
        tensors,
    )


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = len(names) - NAMES_IN_MESSAGE
    return [f"{len(names)} {what}: {', '.join(names[:NAMES_IN_MESSAGE])}" + (f" and {more} more" if more > 0 else "")]
