"""Saves and loads a training state: released weights that vLLM serves, AdamW's state, PPO's value head, and a record.
Nothing is pickled."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from omni_rl.errors import CheckpointError
from omni_rl.files.atomic import atomic_directory
from omni_rl.files.saving import RECORD, STATE
from omni_rl.models import storage
from omni_rl.models.storage import Stored
from omni_rl.models.tensor_file import read_places
from omni_rl.sync.group import ALONE, Group
from omni_rl.sync.released import Released
from omni_rl.train.moments import MOMENTS

OPTIMIZER = f"{STATE}/optimizer.safetensors"
VALUE_HEAD = f"{STATE}/value_head.safetensors"


class Record(BaseModel):
    """The record of a checkpoint, `training/step.json`, which says what weights it holds. `digests` has a digest of the
    tensors in each safetensors file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    run: str
    attempt: int
    number: int
    dtype: Literal["float32", "bfloat16"]
    digests: dict[str, str]


def write(
    target: Path,
    beside: Callable[[Path, torch.dtype], None],
    weights: Sequence[Stored],
    optimizer: Sequence[Stored],
    value_head: Mapping[str, torch.Tensor],
    group: Group = ALONE,
    **record: Any,
) -> None:
    """Write a checkpoint. Each process of `group` writes its own slices. `record` has the fields of the record except
    the digests.

    The weights are the float32 masters. `beside` writes config.json (see `TrainingModel.write_beside`), which asks for
    the dtype of the forward that the weights were trained with, so that an engine serves what was trained. A failure
    raises `CheckpointError` in all processes.
    """
    with storage.group_directory(lambda: atomic_directory(target), group) as directory:
        dtype = getattr(torch, record["dtype"])
        files = storage.write_checkpoint(directory, weights, partial(beside, directory, dtype), group=group)
        state = {OPTIMIZER: optimizer, VALUE_HEAD: Stored.whole(value_head)}
        group.together(lambda: (directory / STATE).mkdir() if group.first else None)
        storage.write(directory, state, group)
        digests = storage.digests(directory, [*files, *state], group)
        text = Record(digests=digests, **record).model_dump_json(indent=1)
        group.together(lambda: (directory / RECORD).write_text(text) if group.first else 0)


def read_record(directory: Path, group: Group = ALONE) -> Record:
    """Check that a checkpoint's tensors are the ones that were saved, and return its record.

    All processes of `group` call this, and each reads a share of the files.

    Raises:
        CheckpointError: there is no checkpoint, it has another schema, or its tensors changed; in all processes.
    """
    record = group.together(lambda: _record(directory))[0]
    try:
        found = storage.digests(directory, list(record.digests), group)
    except CheckpointError as error:
        raise CheckpointError(f"{directory} is no training checkpoint: {error}") from error
    for name, expected in record.digests.items():
        if found[name] != expected:
            raise CheckpointError(f"{directory / name} does not hold the tensors that were saved; use another one")
    return record


def _record(directory: Path) -> Record:
    try:
        return Record.model_validate_json((directory / RECORD).read_text())
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{directory} is no training checkpoint: {error}") from error


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[Stored]:
    """Return AdamW's state as tensors named `moment/parameter`; each process has its own shards of them."""
    return [
        Stored(Released(f"{moment}/{name}", value), value.dtype)
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state[parameter].items()
    ]


def load_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Load a saved state into a fresh optimiser. Each rank reads its own shards, whatever the world size was.

    Raises:
        CheckpointError: the state names other parameters than the model has.
    """
    path = directory / OPTIMIZER
    places = read_places(path)
    unknown = set(places)
    wanted = []
    for name, parameter in model.named_parameters():
        keys = {moment: f"{moment}/{name}" for moment in MOMENTS}
        if places.keys().isdisjoint(keys.values()):
            continue  # saved before its first step
        for moment, key in keys.items():
            # The count of steps is a plain number, on the host.
            value = torch.zeros(()) if moment == "step" else torch.zeros_like(parameter, requires_grad=False)
            optimizer.state[parameter][moment] = value
            wanted.append(Released(key, value))
            unknown.discard(key)
    if unknown:
        raise CheckpointError(f"{path} has state for unknown parameters: {', '.join(sorted(unknown))}")
    storage.read([path], wanted)
