"""Normalises the residual stream, rounding where the engine rounds."""

import torch
from torch import nn

from omni_rl.models.nemotron_omni.language.compiled.add_norm import compiled_add_norm
from omni_rl.models.nemotron_omni.layers import rms_normalise
from omni_rl.models.precision import at_least_float32


class AddRMSNorm(nn.Module):
    """Adds a mixer's output to the residual stream and normalises the sum.

    The sum is normalised before it is rounded to the residual's dtype, and the weight is applied after rounding: the
    engine does so, and in bfloat16 it is not the same as adding first or weighting in float32.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, mixed: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (normed sum, sum) of [T, hidden] each, in their dtype; without a residual, `mixed` is the stream
        itself."""
        if residual is not None and residual.dtype != mixed.dtype:
            # Under autocast mixers return autocast's dtype; the stream stays in the embeddings' dtype.
            mixed = mixed.to(torch.promote_types(mixed.dtype, residual.dtype))
        function = compiled_add_norm if mixed.device.type == "cpu" else add_norm
        return function(mixed, residual, self.weight, self.eps)


def add_norm(
    mixed: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `AddRMSNorm` by torch's operators, on any device."""
    total = at_least_float32(mixed) if residual is None else at_least_float32(mixed) + at_least_float32(residual)
    return rms_normalise(total, eps).to(mixed.dtype) * weight, total.to(mixed.dtype)
