"""Computes the dense feed-forward: up, relu², down."""

import torch
from torch import nn
from transformers import NemotronHConfig

from omni_rl.models.nemotron_omni.layers import SquaredReLU


class MLP(nn.Module):
    """The feed-forward from [T, hidden] to [T, hidden]."""

    def __init__(self, config: NemotronHConfig, intermediate_size: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=config.mlp_bias)
        self.activation = SquaredReLU()
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down_proj(self.activation(self.up_proj(hidden_states)))
        return result
