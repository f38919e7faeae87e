"""Makes random weights of a stated size, in the shape of the small checkpoint: the same layers, wider."""

from pathlib import Path

import torch

from omni_rl.checkpoints.build import write_random
from omni_rl.checkpoints.shape import small_config
from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig

# Megabytes in bfloat16 -> hidden size, experts, hidden size of one expert.
SHAPES = {50: (512, 16, 424), 1000: (2048, 32, 1344)}
HEAD = 64


def weights_of(megabytes: int, directory: Path) -> Path:
    """Write a bfloat16 checkpoint of about `megabytes` MB, one of `SHAPES`, to `directory`, which is made; return
    it."""
    if megabytes not in SHAPES:
        raise ConfigError(f"{megabytes} MB: weights to measure with exist in {', '.join(map(str, SHAPES))} MB")
    return write_random(_config(*SHAPES[megabytes]), directory, seed=0, dtype=torch.bfloat16)


def _config(hidden: int, experts: int, expert: int) -> NemotronOmniConfig:
    config = small_config()
    language = config.llm_config
    language.hidden_size = hidden
    language.intermediate_size = 4 * hidden
    language.head_dim = HEAD
    language.num_attention_heads = hidden // HEAD
    language.num_key_value_heads = hidden // (4 * HEAD)
    language.mamba_head_dim = HEAD
    language.mamba_num_heads = 2 * hidden // HEAD
    language.ssm_state_size = HEAD
    language.n_routed_experts = experts
    language.moe_intermediate_size = expert
    language.moe_shared_expert_intermediate_size = 2 * expert
    return config
