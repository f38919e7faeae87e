"""A checkpoint directory as a sync would send it: released names, sent dtypes, read one tensor at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from omni_rl.errors import CheckpointError
from omni_rl.sync.released import as_sent, is_sent


class CheckpointTensors(Mapping[str, torch.Tensor]):
    """The weights of a checkpoint directory as sync would send them, each read when it is asked for."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        """Raises `CheckpointError` if there are no safetensors files, or one is damaged."""
        self._dtype = dtype
        self._files: dict[str, Any] = {}
        for file in sorted(path.glob("*.safetensors")):
            try:
                handle: Any = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{file} cannot be read: {error}; copy it again") from error
            self._files.update((name, handle) for name in handle.keys() if is_sent(name))  # noqa: SIM118, not a dict
        if not self._files:
            raise CheckpointError(f"{path} has no *.safetensors file; other formats are not read")

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return as_sent(name, tensor, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
