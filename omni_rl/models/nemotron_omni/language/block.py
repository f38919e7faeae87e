"""One block consists of norm, mixer and residual."""

import torch
from torch import nn
from transformers import NemotronHConfig

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.language.attention import Attention
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mamba import MambaMixer
from omni_rl.models.nemotron_omni.language.mlp import MLP
from omni_rl.models.nemotron_omni.language.moe import MoE, RoutingRecord
from omni_rl.models.nemotron_omni.language.norm import AddRMSNorm
from omni_rl.models.nemotron_omni.recomputing import Recomputable


class Block(Recomputable):
    """One block; `kind` is the pattern's letter: M Mamba2, * attention, E MoE, - MLP; `number` counts the blocks of its
    kind.

    Takes and returns the last mixer's output and the residual stream apart, so that the sum is formed, and rounded, in
    the next norm.
    """

    def __init__(self, config: NemotronHConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.kind = config.hybrid_override_pattern[index]
        self.number = config.hybrid_override_pattern[:index].count(self.kind)
        self.norm = AddRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = _mixer(config, self.kind, index)

    def forward(
        self,
        mixed: torch.Tensor,
        residual: torch.Tensor | None,
        layout: PackedLayout,
        record: RoutingRecord | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (mixer output, residual stream), [T, hidden] each; `record`, if given, takes the routing of a MoE
        block."""
        normed, residual = self.norm(mixed, residual)
        return self.mix(normed, layout, record), residual

    def mix(self, normed: torch.Tensor, layout: PackedLayout, record: RoutingRecord | None) -> torch.Tensor:
        """Return the mixer's output [T, hidden]."""
        mixed: torch.Tensor
        if self.kind == "E":
            mixed, routing = self.mixer(normed, None if record is None else record.replayed(self.number))
            if record is not None:
                record.layers[self.index] = routing
        elif self.kind == "-":
            mixed = self.mixer(normed)
        else:
            mixed = self.mixer(normed, layout)
        return mixed


def _mixer(config: NemotronHConfig, kind: str, index: int) -> nn.Module:
    if kind == "M":
        return MambaMixer(config)
    if kind == "*":
        return Attention(config)
    if kind == "E":
        return MoE(config)
    if kind == "-":
        return MLP(config, _width(config, index))
    raise ConfigError(f"layer {index} of the pattern {config.hybrid_override_pattern!r} is {kind!r}; use M, *, E or -")


def _width(config: NemotronHConfig, index: int) -> int:
    """Return the MLP's width; a config may have one for all, or one for each MLP block."""
    widths = config.intermediate_size
    if not isinstance(widths, list):
        return int(widths)
    number = config.hybrid_override_pattern[:index].count("-")
    return int(widths[number if len(widths) > 1 else 0])
