"""Saves and loads a training state: released weights that vLLM serves, AdamW's state, PPO's value head, and a record.
No pickle."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor, distribute_tensor

from omni_rl.errors import CheckpointError
from omni_rl.files.atomic import atomic_directory
from omni_rl.files.companions import Companions
from omni_rl.files.saving import RECORD, STATE
from omni_rl.files.weights import WEIGHTS
from omni_rl.media.digests import tensors_digest
from omni_rl.models.nemotron_omni import checkpoint as omni_checkpoint
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.train.moments import MOMENTS, beside

OPTIMIZER = f"{STATE}/optimizer.safetensors"
VALUE_HEAD = f"{STATE}/value_head.safetensors"


class Record(BaseModel):
    """`training/step.json`: which weights these are. `digests`: of the tensors in each safetensors file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    run: str
    attempt: int
    number: int
    dtype: Literal["float32", "bfloat16"]
    digests: dict[str, str]


def write(
    target: Path,
    config: NemotronOmniConfig,
    companions: Companions | None,
    weights: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    value_head: Mapping[str, torch.Tensor],
    **record: Any,
) -> None:
    """Write a checkpoint from full tensors; fields of the record but the digests are keywords.

    Weights are the float32 masters; config.json asks for the dtype of the forward that they were trained with, so
    that an engine serves what was trained.
    """
    with atomic_directory(target) as directory:
        omni_checkpoint.write_files(directory, config, companions, weights, getattr(torch, record["dtype"]))
        (directory / STATE).mkdir()
        digests = {WEIGHTS: tensors_digest(weights)}
        for name, tensors in ((OPTIMIZER, optimizer), (VALUE_HEAD, value_head)):
            omni_checkpoint.save_tensors(tensors, directory / name)
            digests[name] = tensors_digest(tensors)
        (directory / RECORD).write_text(Record(digests=digests, **record).model_dump_json(indent=1))


def read_record(directory: Path) -> Record:
    """The record of a checkpoint, once its tensors were found to be the ones that were saved.

    Raises:
        CheckpointError: no checkpoint, one of another schema, or one whose tensors changed.
    """
    try:
        record = Record.model_validate_json((directory / RECORD).read_text())
        for name, expected in record.digests.items():
            if tensors_digest(_read(directory / name)) != expected:
                raise CheckpointError(f"{directory / name} does not hold the tensors that were saved; use another one")
    except (OSError, SafetensorError, ValidationError) as error:
        raise CheckpointError(f"{directory} is no training checkpoint: {error}") from error
    return record


def _read(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """AdamW's state as full tensors named `moment/parameter`; a collective: every rank walks through it."""
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state[parameter].items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            yield f"{moment}/{name}", full.detach()


def load_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Put a saved state into a fresh optimiser; each rank takes its own shards, whatever the world size was.

    Raises:
        CheckpointError: the state names other parameters than the model has.
    """
    with safe_open(directory / OPTIMIZER, "pt") as stored:
        names = set(stored.keys())
        for name, parameter in model.named_parameters():
            keys = {moment: f"{moment}/{name}" for moment in MOMENTS}
            if names.isdisjoint(keys.values()):
                continue  # saved before its first step
            for moment, key in keys.items():
                value = stored.get_tensor(key)
                if moment != "step" and isinstance(parameter, DTensor):
                    value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
                optimizer.state[parameter][moment] = beside(parameter, moment, value)
                names.discard(key)
    if names:
        raise CheckpointError(f"{directory / OPTIMIZER} has state for unknown parameters: {', '.join(sorted(names))}")
