"""Reads a checkpoint directory as a sync would send it: released names, sent dtypes, one tensor at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from omni_rl.errors import CheckpointError
from omni_rl.files.reading import read_whole
from omni_rl.files.weights import open_weights, weight_files
from omni_rl.sync.manifest import Entry, arrange
from omni_rl.sync.released import ReleasedFormat

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""torch's dtypes by the names that safetensors gives them."""


class CheckpointTensors(Mapping[str, torch.Tensor]):
    """The weights of a checkpoint directory as sync would send them, each read when it is asked for."""

    def __init__(self, path: Path, dtype: torch.dtype, released: ReleasedFormat) -> None:
        """Open the weight files. `released` is the format of the checkpoint's family.

        All files stay open from here on, so that a save into the directory changes nothing.

        Raises `CheckpointError` as `weight_files` does, or if a file is damaged.
        """
        self._dtype = dtype
        self._released = released
        self._files: dict[str, Any] = read_whole(path, lambda: _open(path, released))

    def places(self) -> tuple[Entry, ...]:
        """Return where the weights lie in a slab; reads the files' headers only. Raises `CheckpointError` for a dtype
        that is not in `DTYPES`."""
        found = {}
        for name, file in self._files.items():
            stored = file.get_slice(name)
            if stored.get_dtype() not in DTYPES:
                raise CheckpointError(f"{name} is stored as {stored.get_dtype()}, which is not synced; convert it")
            sent = self._released.sent_dtype(name, DTYPES[stored.get_dtype()], self._dtype)
            found[name] = str(sent).removeprefix("torch."), tuple(stored.get_shape())
        return arrange(found)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return self._released.as_sent(name, tensor, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _open(path: Path, released: ReleasedFormat) -> dict[str, Any]:
    """Return the open file that holds each released tensor, by the tensor's name."""
    handles = [open_weights(file) for file in weight_files(path)]
    return {name: handle for handle in handles for name in handle.keys() if released.is_sent(name)}  # noqa: SIM118, not a dict
