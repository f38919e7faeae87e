"""Writes a random, untrained Nemotron Omni of any pattern, for tests and as the start of a trained one."""

from pathlib import Path

import torch

from omni_rl.checkpoints.initial import fill
from omni_rl.checkpoints.shape import PATTERN, small_config
from omni_rl.checkpoints.tokenizer import save_tokenizer
from omni_rl.files.saving import saved_directory
from omni_rl.models.nemotron_omni.checkpoint import released_state, write_files
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.storage import Stored


def random_checkpoint(directory: Path, seed: int, pattern: str = PATTERN, dtype: str = "bfloat16") -> Path:
    """Write config, tokenizer and seeded weights in released names to `directory`, which is made; return it.

    `pattern` is one letter a layer: M (Mamba2), * (attention), E (MoE), - (MLP). `dtype` is "bfloat16" or "float32".
    """
    return write_random(small_config(pattern, dtype), directory, seed, getattr(torch, dtype))


def write_random(config: NemotronOmniConfig, directory: Path, seed: int, dtype: torch.dtype) -> Path:
    """Do what `random_checkpoint` does, for a configuration of any size."""
    tensors = {}
    for name, own in released_state(NemotronOmniForConditionalGeneration(config), dtype):
        values = torch.zeros(own.shape)
        if own.is_floating_point():
            fill(name, values, seed)
        tensors[name] = values.to(own.dtype)
    with saved_directory(directory) as new:
        write_files(new, config, None, Stored.whole(tensors), dtype)
        save_tokenizer(new)
    return directory
