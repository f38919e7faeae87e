"""Cuts a pack into its sequences: every mixer of a matched model gets one after the other."""

import torch

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.language.layout import PackedLayout


def sequences(rows: torch.Tensor, layout: PackedLayout) -> tuple[torch.Tensor, ...]:
    """Return `rows` [T, ...] of a pack, cut into its sequences.

    Raises `ConfigError` for context parallelism: the engine's operators need a sequence as a whole.
    """
    if layout.context is not None:
        raise ConfigError('numerics "matched" needs whole sequences; use "reference" with context parallelism')
    return torch.split(rows, list(layout.lengths))
