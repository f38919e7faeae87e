"""Computes RMS norms by torch's operators, whose sums run in the engine's order, weighted after rounding."""

import torch

from omni_rl.models.nemotron_omni.language.norm import AddRMSNorm, add_norm
from omni_rl.models.nemotron_omni.layers import RMSNorm, rms_normalise
from omni_rl.models.precision import at_least_float32


class MatchedAddRMSNorm(AddRMSNorm):
    """The norm of the residual stream."""

    def forward(self, mixed: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return add_norm(mixed, residual, self.weight, self.eps)


class MatchedRMSNorm(RMSNorm):
    """The norm of the projectors. It weights in the model's dtype, where the reference weights in float32."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = rms_normalise(at_least_float32(hidden_states), self.eps)
        return normed.to(hidden_states.dtype) * self.weight
