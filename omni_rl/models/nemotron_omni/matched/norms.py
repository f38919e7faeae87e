"""RMS norms by torch's operators, whose sums run in the engine's order, weighted after rounding."""

import torch

from omni_rl.models.nemotron_omni.language.norm import AddRMSNorm, add_norm
from omni_rl.models.nemotron_omni.layers import RMSNorm, at_least_float32, rms_normalise


class MatchedAddRMSNorm(AddRMSNorm):
    """The residual stream's."""

    def forward(self, mixed: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return add_norm(mixed, residual, self.weight, self.eps)


class MatchedRMSNorm(RMSNorm):
    """The projectors'. Weighted in the model's dtype, where the reference weights in float32."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = rms_normalise(at_least_float32(hidden_states), self.eps)
        return normed.to(hidden_states.dtype) * self.weight
