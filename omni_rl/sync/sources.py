"""Defines where new weights come from: anything that can write all of them into a slab."""

from contextlib import closing
from pathlib import Path
from typing import Protocol

import torch

from omni_rl.errors import SourceError
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.manifest import Manifest, Origin
from omni_rl.sync.released import ReleasedFormat
from omni_rl.sync.slab import Slab


class Source(Protocol):
    """A source of weights. `fill` writes everything and seals, or raises and seals nothing; it may be called again."""

    def fill(self, slab: Slab) -> Manifest: ...


class SlabFiller(Protocol):
    """Anything that has the ranks of our training copy write their weights into a slab; see
    `omni_rl.train.trainer.Trainer.fill`."""

    def fill(self, path: Path, claim: str | None = None) -> Manifest: ...


class FsdpSource:
    """Our trainer's current weights: every rank writes its own shards, and nothing is gathered."""

    def __init__(self, trainer: SlabFiller) -> None:
        self._trainer = trainer

    def fill(self, slab: Slab) -> Manifest:
        return self._trainer.fill(slab.path, slab.claim())


class DirectorySource:
    """A directory of safetensors in released names; it is weights number `number` of attempt `attempt` of `run`.

    `released` is the format of the weights' family. `origin` is "checkpoint" for the directory that the run begins
    with.
    """

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype,
        released: ReleasedFormat,
        *,
        run: str,
        attempt: int = 1,
        number: int = 0,
        origin: Origin = "directory",
    ) -> None:
        self._path = path
        self._dtype = dtype
        self._released = released
        self._run = run
        self._attempt = attempt
        self._number = number
        self._origin: Origin = origin

    def fill(self, slab: Slab) -> Manifest:
        tensors = CheckpointTensors(self._path, self._dtype, self._released)
        places = tensors.places()
        with slab.writing(places):
            written = slab.write_all(tensors)
            manifest = Manifest.seal(
                places,
                written.checksums,
                run=self._run,
                attempt=self._attempt,
                number=self._number,
                nonfinite=written.nonfinite,
                origin=self._origin,
            )
            slab.seal(manifest)
        return manifest


class PublishedSource:
    """The weights that a process published as `version` in the slab at `path` (see `omni_rl.client.publish`), to be
    copied."""

    def __init__(self, path: Path, version: str) -> None:
        self._path = path
        self._version = version

    def fill(self, slab: Slab) -> Manifest:
        with closing(Slab.open(self._path)) as inbox, inbox.reading():
            return self._copy(inbox, slab)

    def _copy(self, inbox: Slab, slab: Slab) -> Manifest:
        published = inbox.sealed()
        if str(published.version) != self._version:
            raise SourceError(
                f"{self._path} holds {published.version}, no longer {self._version}; sync that, or publish again"
            )
        with slab.writing(published.entries):
            written = slab.write_all(inbox.tensors())
            damaged = [e.name for e in published.entries if written.checksums[e.name] != e.checksum]
            if damaged:
                raise SourceError(f"{self._path}: {', '.join(damaged)} changed since it was published; publish again")
            # Counted here: the publisher may be of a version that neither counted nor said whose weights they are.
            counted = {"nonfinite": written.nonfinite, "origin": published.origin or "published"}
            manifest = published.model_copy(update=counted)
            slab.seal(manifest)
        return manifest
