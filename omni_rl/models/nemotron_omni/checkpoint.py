"""Checkpoints on disk: safetensors in released names, read and written one tensor at a time."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.models.nemotron_omni.state_dict_adapter import released_items

if TYPE_CHECKING:
    from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What vLLM needs beside config and weights; the model does not own it, so it is copied.
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "added_tokens.json",
)


def read_released(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (released name, tensor) of a checkpoint directory, one at a time.

    Raises `CheckpointError` for a directory without safetensors, or an index that names a file that is not there.
    """
    for path in weight_files(directory):
        with open_weights(path) as stored:
            for name in stored.keys():  # noqa: SIM118, a safe_open is not a dict
                yield name, stored.get_tensor(name)


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """An open safetensors file. Raises `CheckpointError` for anything else under that name, a pickle for one."""
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no safetensors file, or is damaged ({error}); pickled weights can run code and are never "
            "loaded, whatever their file is called"
        ) from error
    with file as stored:
        yield stored


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory. Raises as `read_released` does."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; give a local checkpoint directory")
    index = directory / _INDEX
    if index.exists():
        files = [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        absent = [path.name for path in files if not path.exists()]
        if absent:
            raise CheckpointError(f"{index} names files that are not there: {', '.join(absent)}")
        return files
    files = sorted(directory.glob("*.safetensors"))
    if files:
        return files
    pickled = sorted(path.name for pattern in _PICKLED for path in directory.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{directory} has pickled weights only ({', '.join(pickled)}), which can run code; convert to safetensors"
        )
    raise CheckpointError(f"{directory} has no *.safetensors")


def released_state(
    model: "NemotronOmniForConditionalGeneration", dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (released name, whole tensor) in the dtypes that an engine of `dtype` holds, one at a time.

    A sharded tensor is gathered when its turn comes, so all ranks must iterate together, to the end.
    """
    return released_items(((name, _whole(tensor)) for name, tensor in model.state_dict().items()), dtype)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def save(model: "NemotronOmniForConditionalGeneration", directory: Path, dtype: torch.dtype) -> None:
    """Write config, weights and the source checkpoint's tokenizer, so that vLLM serves `directory` unchanged."""
    write(model.config, dict(released_state(model, dtype)), directory, dtype)


def write(
    config: "NemotronOmniConfig", weights: Mapping[str, torch.Tensor], directory: Path, dtype: torch.dtype
) -> None:
    """Write whole `weights` (released names), which an engine shall serve in `dtype`, and what vLLM needs beside."""
    directory.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
    save_file(plain, directory / "model.safetensors", metadata={"format": "pt"})
    source = config.name_or_path
    config = type(config).from_dict(config.to_dict())
    # vLLM's processor casts pixels to the config's dtype, and its language model reads its own section's.
    config.dtype = config.llm_config.dtype = dtype
    config.save_pretrained(directory)
    if source and Path(source).is_dir() and Path(source).resolve() != directory.resolve():
        for path in sorted(path for pattern in _TOKENIZER for path in Path(source).glob(pattern)):
            shutil.copy2(path, directory / path.name)


def parse_dtype(dtype: torch.dtype | str | None, default: torch.dtype) -> torch.dtype:
    """float32 or bfloat16, as an object or by name; None and "auto" mean `default`. Raises `ConfigError` otherwise."""
    if dtype is None or dtype == "auto":
        dtype = default
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ConfigError(f"dtype {name!r} is not supported; use one of {', '.join(known)}")
    return known[name]
