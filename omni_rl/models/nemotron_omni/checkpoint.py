"""Reads and writes checkpoints on disk: safetensors in released names, of whole models and of sharded ones."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.tensor import DTensor

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.files.companions import CONFIG, Companions
from omni_rl.files.saving import saved_directory
from omni_rl.files.weights import weight_files
from omni_rl.models import storage
from omni_rl.models.nemotron_omni import placement
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.keywords import Loading
from omni_rl.models.nemotron_omni.parts import NemotronOmniParts
from omni_rl.models.nemotron_omni.released import LAYER_SCALES, RELEASED
from omni_rl.models.nemotron_omni.shards import released_tensors, stored_tensors
from omni_rl.models.nemotron_omni.spelling import respelled, served_config
from omni_rl.models.storage import Stored
from omni_rl.models.tensor_file import TensorPlace, read_places
from omni_rl.sync.group import ALONE, Group
from omni_rl.sync.released import Released

logger = logging.getLogger(__name__)
T = TypeVar("T")
M = TypeVar("M", bound=NemotronOmniParts)
_SHOWN = 5
"""How many names a message has."""


def load(cls: type[M], directory: Path, loading: Loading, *args: Any, **kwargs: Any) -> M:
    """Return a model of class `cls` from a directory; see `from_pretrained`, whose arguments these are."""
    model = outline(cls, directory, loading, *args, **kwargs)
    if loading.device.type != "meta":
        placement.materialise(model, loading.device)
        read_weights(model, directory)
    return model


def outline(cls: type[M], directory: Path, loading: Loading, *args: Any, **kwargs: Any) -> M:
    """Return the model of a directory on the meta device: its modules, and what stands beside it, but no weights."""
    weight_files(directory)  # says what is wrong with the directory before anything is built
    config = loading.config
    if config is None:
        config = NemotronOmniConfig.from_pretrained(directory)
        config.name_or_path = str(directory.resolve())
    dtype = parse_dtype(loading.dtype, config)
    with torch.device("meta"):
        model = cls(config, *args, **kwargs)
    model.to(dtype)
    model.companions = Companions.read(directory)
    return model


def require_weights(model: NemotronOmniParts, directory: Path) -> dict[str, TensorPlace]:
    """Return where each of a directory's tensors is stored, by its released name; no tensor is read.

    Raises `CheckpointError` that lists every tensor that is missing, unexpected or misshapen for `model`.
    """
    stored = {name: place for path in weight_files(directory) for name, place in read_places(path).items()}
    model.state_dict_adapter.require(model.state_dict(), {name: place.shape for name, place in stored.items()})
    return stored


def read_weights(model: NemotronOmniParts, directory: Path) -> None:
    """Fill a whole or sharded `model` with a directory's weights, each process its own slices, in the model's dtypes.

    Raises `CheckpointError` as `require_weights` does, before anything is read, and for a vision tower with layer
    scales.
    """
    paths = weight_files(directory)
    stored = require_weights(model, directory)
    scales = {
        n: torch.empty(place.shape, dtype=place.dtype) for n, place in stored.items() if LAYER_SCALES.fullmatch(n)
    }
    storage.read(paths, [Released(name, tensor) for name, tensor in scales.items()])
    if other := sorted(name for name, scale in scales.items() if not scale.eq(1).all()):
        raise CheckpointError(
            f"{', '.join(other)} scale a layer of the vision tower, which no released checkpoint does"
        )
    storage.read(paths, released_tensors(model))


def companions_of(config: NemotronOmniConfig) -> Companions | None:
    """Return what stands beside a configuration in the directory that it was read from; None if the directory is
    gone."""
    source = Path(config.name_or_path or "")
    return Companions.read(source) if config.name_or_path and (source / CONFIG).is_file() else None


def released_state(model: NemotronOmniParts, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every (released name, whole tensor) in the dtypes that an engine of `dtype` holds, one at a time.

    A sharded tensor is gathered when its turn comes, so all ranks must iterate together, to the end.
    """
    for name, tensor in model.state_dict().items():
        for released, value in model.state_dict_adapter.convert_single_tensor_to_hf(name, _whole(tensor)):
            yield released, RELEASED.as_sent(released, value, dtype)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def save(model: NemotronOmniParts, target: Path, dtype: torch.dtype, shard_size: int) -> None:
    """Write config, weights and what the model was loaded with, so that vLLM serves `target` unchanged.

    `target` is replaced at once, by `saved_directory`. The ranks of a sharded model call this together, and each writes
    its own slices. Raises `CheckpointError`, on all of them.
    """
    _require_plain(model)
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    group = Group.default() if sharded else ALONE
    with storage.group_directory(lambda: saved_directory(target), group) as directory:
        companions = _on_first(group, lambda: _companions_for(model, target))
        write_files(directory, model.config, companions, stored_tensors(model, dtype), dtype, shard_size, group)


def _require_plain(model: NemotronOmniParts) -> None:
    """Raise `CheckpointError` for a model in which adapters or other heads gave tensors names that nothing loads."""
    names = model.state_dict().keys()
    if changed := sorted(names ^ model.built_names):
        shown = ", ".join(changed[:_SHOWN]) + (f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else "")
        raise CheckpointError(
            "nothing would load what is in this model; merge its adapters first (PEFT's merge_and_unload) or save "
            f"those alone, and put back what was replaced. Tensors that were not there, or are there no more: {shown}"
        )


def _companions_for(model: NemotronOmniParts, target: Path) -> Companions | None:
    companions = model.companions
    if companions is None:
        return None
    if companions.directory == target.resolve() and target.exists():
        # Saved in place: the files there stay as they are now, and may be newer than the model.
        return dataclasses.replace(companions, files={}, left_out=())
    if replaced := companions.differing(target):
        logger.warning("%s in %s are replaced by those that the model was loaded with", replaced, target)
    return companions


def _on_first(group: Group, act: Callable[[], T]) -> T | None:
    """Return what `act` returns in the first process, None in the others; its error is raised in all."""
    found: list[T] = []
    group.together(lambda: found.append(act()) if group.first else None)
    return found[0] if found else None


def write_files(
    directory: Path,
    config: NemotronOmniConfig,
    companions: Companions | None,
    weights: Sequence[Stored],
    dtype: torch.dtype,
    shard_size: int = storage.SHARD_SIZE,
    group: Group = ALONE,
) -> list[str]:
    """Write `weights` (released names), which an engine shall serve in `dtype`, and what stands beside them; see
    `storage.write_checkpoint`."""
    beside = partial(write_beside, directory, config, companions, dtype)
    return storage.write_checkpoint(directory, weights, beside, shard_size, group)


def write_beside(
    directory: Path, config: NemotronOmniConfig, companions: Companions | None, dtype: torch.dtype
) -> None:
    """Write config.json, which asks for `dtype`, and the companions. Raises `OSError`."""
    served = served_config(config, dtype)
    text = None if companions is None else respelled(companions.config, served)
    if text is None:
        served.save_pretrained(directory)
    else:
        (directory / CONFIG).write_bytes(text.encode())
    if companions is not None:
        companions.write(directory)


def parse_dtype(dtype: torch.dtype | str | None, config: NemotronOmniConfig) -> torch.dtype:
    """Return float32, bfloat16 or float16, given as an object or by name; None and "auto" mean the configuration's.

    The configuration's dtype is its own, else its language model's, else float32. Raises `ConfigError` for others.
    """
    if dtype is None or dtype == "auto":
        section = None if config.llm_config is None else config.llm_config.dtype
        dtype = config.dtype or section or torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ConfigError(f"dtype {name!r} is not supported; use one of {', '.join(known)}")
    return known[name]
