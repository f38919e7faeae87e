"""Checkpoints on disk: safetensors in released names, read and written one tensor at a time."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.files.companions import CONFIG, Companions
from omni_rl.files.saving import saved_directory
from omni_rl.files.weights import WEIGHTS, open_weights, weight_files
from omni_rl.models.nemotron_omni import placement
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.spelling import respelled, served_config
from omni_rl.models.nemotron_omni.state_dict_adapter import released_items
from omni_rl.sync.group import ALONE, Group

if TYPE_CHECKING:
    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

logger = logging.getLogger(__name__)


def read_released(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (released name, tensor) of a checkpoint directory, one at a time. Raises as `weight_files` does."""
    for path in weight_files(directory):
        with open_weights(path) as stored:
            for name in stored.keys():  # noqa: SIM118, a safe_open is not a dict
                yield name, stored.get_tensor(name)


def load(
    cls: "type[NemotronOmniForConditionalGeneration]", directory: Path, *args: Any, **kwargs: Any
) -> "NemotronOmniForConditionalGeneration":
    """A model of class `cls` from a directory; see `from_pretrained`, whose arguments these are."""
    weight_files(directory)  # says what is wrong with the directory before anything is built
    config = NemotronOmniConfig.from_pretrained(directory)
    config.name_or_path = str(directory.resolve())
    dtype = parse_dtype(kwargs.pop("dtype", None), default=config.dtype or torch.float32)
    device = torch.device(kwargs.pop("device", "cpu"))
    with torch.device("meta"):
        model = cls(config, *args, **kwargs)
    placement.cast(model, dtype)
    placement.materialise(model, device)
    model.state_dict_adapter.load(model.state_dict(), read_released(directory))
    model.companions = Companions.read(directory)
    return model


def companions_of(config: NemotronOmniConfig) -> Companions | None:
    """What stands beside a configuration in the directory that it was read from; None if there is none any more."""
    source = Path(config.name_or_path or "")
    return Companions.read(source) if config.name_or_path and (source / CONFIG).is_file() else None


def released_state(
    model: "NemotronOmniForConditionalGeneration", dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (released name, whole tensor) in the dtypes that an engine of `dtype` holds, one at a time.

    A sharded tensor is gathered when its turn comes, so all ranks must iterate together, to the end.
    """
    return released_items(((name, _whole(tensor)) for name, tensor in model.state_dict().items()), dtype)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def save(model: "NemotronOmniForConditionalGeneration", target: Path, dtype: torch.dtype) -> None:
    """Write config, weights and what the model was loaded with, so that vLLM serves `target` unchanged.

    `target` is replaced at once, by `saved_directory`. The ranks of a sharded model call this together: the first one
    gathers and writes, the others wait for it. Raises `CheckpointError`, on all of them.
    """
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    group = Group.default() if sharded else ALONE
    # Gathering is collective: every rank goes through all tensors.
    weights = {name: tensor.cpu() for name, tensor in released_state(model, dtype) if group.first}

    def write() -> None:
        with saved_directory(target) as directory:
            companions = model.companions
            if companions is not None and companions.directory == target.resolve() and target.exists():
                # In place: the files there stay as they are now, which may be newer than the model.
                companions = dataclasses.replace(companions, files={}, left_out=())
            elif companions is not None and (replaced := companions.differing(target)):
                logger.warning("%s in %s are replaced by those that the model was loaded with", replaced, target)
            write_files(directory, model.config, companions, weights, dtype)

    group.together(lambda: write() if group.first else None)


def write_files(
    directory: Path,
    config: NemotronOmniConfig,
    companions: Companions | None,
    weights: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Write whole `weights` (released names), which an engine shall serve in `dtype`, and what stands beside them.

    `directory` is empty: making it take a checkpoint's place is for the caller. Raises `CheckpointError` and `OSError`.
    """
    served = served_config(config, dtype)
    text = None if companions is None else respelled(companions.config, served)
    if text is None:
        served.save_pretrained(directory)
    else:
        (directory / CONFIG).write_bytes(text.encode())
    if companions is not None:
        companions.write(directory)
    save_tensors(weights, directory / WEIGHTS)
    # safetensors makes files that only their owner can read, and a server may be somebody else.
    shutil.copymode(directory / CONFIG, directory / WEIGHTS)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file, from any device. Raises `CheckpointError` if it cannot be written, on a full disk."""
    plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path.name}: {error}; what was there before is as it was") from error


def parse_dtype(dtype: torch.dtype | str | None, default: torch.dtype) -> torch.dtype:
    """float32 or bfloat16, as an object or by name; None and "auto" mean `default`. Raises `ConfigError` otherwise."""
    if dtype is None or dtype == "auto":
        dtype = default
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ConfigError(f"dtype {name!r} is not supported; use one of {', '.join(known)}")
    return known[name]
