"""Computes attention by vLLM's CPU operator."""

import torch
from torch.nn import functional as F

from omni_rl.models.nemotron_omni.language.attention import Attention
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.matched.forward import engine_forward
from omni_rl.models.nemotron_omni.matched.operators import attend
from omni_rl.models.nemotron_omni.matched.sequences import sequences
from omni_rl.models.precision import at_least_float32


class MatchedAttention(Attention):
    """Attention from [T, hidden] to [T, hidden], one sequence after the other."""

    def forward(self, hidden_states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        return torch.cat([self._alone(rows) for rows in sequences(hidden_states, layout)])

    def _alone(self, rows: torch.Tensor) -> torch.Tensor:
        states = (projection(rows) for projection in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (projected.view(len(rows), -1, self.head_dim) for projected in states)
        mixed = engine_forward(attend, _reference, query, key, value)
        projected: torch.Tensor = self.o_proj(mixed.flatten(1))
        return projected


def _reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute what `operators.attend` computes, in float32 up to the result."""
    q, k, v = (at_least_float32(states).transpose(0, 1).unsqueeze(0) for states in (query, key, value))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return mixed.squeeze(0).transpose(0, 1).to(query.dtype)
