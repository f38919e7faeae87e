"""Computes grouped-query causal attention over packed sequences, without rotary embedding."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import NemotronHConfig

from omni_rl.models.nemotron_omni.context_parallel import Context
from omni_rl.models.nemotron_omni.language.layout import PackedLayout


class Attention(nn.Module):
    """Attention from [T, hidden] to [T, hidden]; every token sees its own sequence up to itself, scores scaled by
    head_dim^-½."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        query, key, value = (
            projected.view(len(projected), -1, self.head_dim).transpose(0, 1)
            for projected in (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        )
        if layout.context is None:
            mixed = _over_sequences(query, key, value, layout)
        else:
            mixed = _over_context(query, key, value, layout.context)
        projected: torch.Tensor = self.o_proj(mixed)
        return projected


def _over_sequences(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
    """Return [T, heads·head_dim] for queries, keys and values of [heads, T, head_dim]."""
    parts = zip(*(torch.split(states, list(layout.lengths), dim=1) for states in (query, key, value)), strict=True)
    mixed = [
        F.scaled_dot_product_attention(
            q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), is_causal=True, enable_gqa=True
        ).squeeze(0)
        for q, k, v in parts
    ]
    return torch.cat(mixed, dim=1).transpose(0, 1).flatten(1)


def _over_context(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context: Context) -> torch.Tensor:
    """Attend with this rank's queries [heads, B·l, head_dim] to the keys and values of all ranks; return [B·l,
    heads·head_dim]."""
    keys, values = (context.gather(states.transpose(0, 1)) for states in (key, value))
    keys, values = (s.view(context.batch, context.length, *s.shape[1:]).transpose(1, 2) for s in (keys, values))
    queries = query.transpose(0, 1).reshape(context.batch, -1, len(query), query.shape[-1]).transpose(1, 2)
    mixed = []
    for chunk, (start, end) in zip(queries.chunk(2, dim=2), context.chunk_spans(), strict=True):
        visible = torch.ones(end - start, end, dtype=torch.bool, device=query.device).tril(start)
        seen = F.scaled_dot_product_attention(
            chunk, keys[:, :, :end], values[:, :, :end], attn_mask=visible, enable_gqa=True
        )
        mixed.append(seen)
    return torch.cat(mixed, dim=2).transpose(1, 2).flatten(2).flatten(0, 1)
