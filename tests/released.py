"""Whole checkpoints in memory, as only tests of small ones want them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from omni_rl.files.weights import open_weights, weight_files
from omni_rl.models.nemotron_omni.released import RELEASED


def read_released(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every (released name, tensor) of a checkpoint directory."""
    for path in weight_files(directory):
        with open_weights(path) as stored:
            for name in stored.keys():  # noqa: SIM118, a safe_open is not a dict
                yield name, stored.get_tensor(name)


def all_as_sent(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the weights among Nemotron Omni's released tensors, each as a sync sends it to an engine of `dtype`."""
    return {name: RELEASED.as_sent(name, tensor, dtype) for name, tensor in tensors.items() if RELEASED.is_sent(name)}
