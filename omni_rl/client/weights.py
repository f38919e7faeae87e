"""Hands the weights of any trainer to a run of our pair, from any process on the run's host.

They pass through a slab: a file of shared memory that holds one set of weights. It is sealed once it is complete, and a
sync then copies the weights to the engines.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from omni_rl.errors import ConfigError, SlabError
from omni_rl.models.families import is_weight
from omni_rl.sync.fill import fill
from omni_rl.sync.group import ALONE, Group
from omni_rl.sync.manifest import arrange
from omni_rl.sync.ownership import SHARED_MEMORY
from omni_rl.sync.released import Released
from omni_rl.sync.slab import Slab
from omni_rl.sync.slabs import INBOX, RECORD, RunRecord, runs_at, slab_directory

RUN = "OMNI_RL_RUN"
"""The environment variable that names the run where the caller does not."""


@dataclass(frozen=True)
class Published:
    """Sealed weights that a sync can name: the slab that holds them, and their version as `str(WeightVersion)`."""

    path: Path
    version: str


def publish(
    state_dict: Mapping[str, torch.Tensor],
    *,
    number: int,
    run: str | None = None,
    attempt: int = 1,
    directory: Path = SHARED_MEMORY,
) -> Published:
    """Put a model's weights where a sync of `run` takes them from. Their version gets `attempt` and `number`.

    `omni-rl up` and `omni-rl status` print the name of the run. Without `run`, it is OMNI_RL_RUN of the environment, or
    else the one run that has slabs on this host.

    The names in `state_dict` are the released checkpoint's. Floating-point tensors are rounded to the dtypes that the
    run serves. If any tensor is a DTensor, every process of the default process group calls this with its own shards
    and writes just those; else one process calls it. What was published before is overwritten. `directory` is where the
    run's slabs are.

    Weights that hold NaN or infinity can be published; a sync refuses them unless it is told to allow them.

    Raises:
        ConfigError: No run is named, and this host has none or several; the message names them.
        SourceError: Tensors are missing, unexpected or of another shape (all are named), or another rank failed.
        TrainerDeadError: Another rank died; nothing was published.
        SlabBusyError: Another process is publishing, or a sync is reading what was published before; try again.
        SlabFullError: There is no room for one more set of weights.
        SlabError: The run has no slabs on this host; the message names those that have.
    """
    # `together` runs a step on every rank and raises an error of one rank on all, so that no rank waits for another.
    group = Group.default() if any(isinstance(tensor, DTensor) for tensor in state_dict.values()) else ALONE
    path = group.together(lambda: _home(run, directory))[0] / INBOX
    record = group.together(lambda: RunRecord.read(path.parent))[0]
    tensors: list[Released] = []
    group.together(lambda: tensors.extend(_accepted(record, state_dict)))
    group.together(lambda: _make(path, record.nbytes) if group.first else None)
    inbox = _open_together(path, group)
    try:
        manifest = fill(
            inbox,
            tensors,
            record.places,
            run=record.run,
            attempt=attempt,
            number=number,
            origin="published",
            group=group,
        )
    finally:
        inbox.close()
    return Published(path, str(manifest.version))


def _home(run: str | None, directory: Path) -> Path:
    """Return the directory of the slabs of `run`; raises `ConfigError` and `SlabError` as `publish` does."""
    run = run or os.environ.get(RUN)
    present = runs_at(directory)
    if run is None:
        if len(present) != 1:
            raise ConfigError(f"which run? Say run=, or set {RUN}, to what omni-rl status prints; {_told(present)}")
        run = present[0]
    home = slab_directory(run, directory)
    if not (home / RECORD).exists():
        raise SlabError(f"run {run!r} has no slabs in {directory}; {_told(present)}")
    return home


def _told(runs: list[str]) -> str:
    return f"runs of this host are {', '.join(runs)}" if runs else "no run of this host has any; omni-rl up starts one"


def _accepted(record: RunRecord, state_dict: Mapping[str, torch.Tensor]) -> list[Released]:
    """Return the weights among a model's tensors. Raises `SourceError` unless they are the run's, in whatever
    floating-point dtype."""
    served: dict[str, torch.dtype] = {entry.name: getattr(torch, entry.dtype) for entry in record.places}
    tensors = [Released(name, tensor) for name, tensor in state_dict.items() if name in served or is_weight(name)]
    found = {}
    for released in tensors:
        dtype = served.get(released.name, released.dtype)
        rounded = dtype if dtype.is_floating_point and released.dtype.is_floating_point else released.dtype
        found[released.name] = str(rounded).removeprefix("torch."), released.shape
    record.check(arrange(found), "the state dict")
    return tensors


def _make(path: Path, nbytes: int) -> None:
    """Make a slab of at least `nbytes` at `path`; the one that is there stays if it is large enough."""
    with contextlib.suppress(SlabError):
        present = Slab.open(path)
        enough = present.nbytes >= nbytes
        present.close()
        if enough:
            return
    path.unlink(missing_ok=True)
    Slab.create(path, nbytes).close()


def _open_together(path: Path, group: Group) -> Slab:
    opened: list[Slab] = []
    group.together(lambda: opened.append(Slab.open(path)))
    return opened[0]
