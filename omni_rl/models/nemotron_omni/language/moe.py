"""Mixture of experts: a float32 sigmoid router, relu² experts, one shared expert, optional latent projections.

Shapes: T tokens, E experts of width I, K experts chosen a token.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import NemotronHConfig

from omni_rl.models.nemotron_omni.language.mlp import MLP
from omni_rl.models.nemotron_omni.layers import at_least_float32, squared_relu


@dataclass(frozen=True)
class Routing:
    """One layer's choices: `experts` int64 [T, K], best first; `weights` float32 [T, K]; `margins` float32 [T].

    A margin is the gap between the last chosen and the first refused biased score: how near the choice was to another.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    margins: torch.Tensor


class RoutingRecord:
    """Takes every MoE layer's routing during a forward; a layer that is recomputed replaces its own.

    A plain object on purpose: FSDP rebuilds the dicts, lists and dataclasses that it finds among a unit's arguments.
    """

    def __init__(self) -> None:
        self.layers: dict[int, Routing] = {}

    def experts(self) -> torch.Tensor:
        """int16 [T, L, K], layers in the model's order."""
        return torch.stack([self.layers[index].experts.to(torch.int16) for index in sorted(self.layers)], dim=1)

    def margins(self) -> torch.Tensor:
        """float32 [T, L]."""
        return torch.stack([self.layers[index].margins for index in sorted(self.layers)], dim=1)


class Router(nn.Module):
    """Chooses K of E experts by sigmoid scores plus a correction bias; the bias takes no part in the weights.

    With several groups only the `topk_group` groups with the best sums of their two best scores take part (DeepSeek-V3,
    section 2.1.2, without its auxiliary loss).
    """

    e_score_correction_bias: torch.Tensor

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.groups = config.n_group
        self.groups_kept = config.topk_group
        self.normalise = config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        # Rounded to bfloat16 it would change most choices; a buffer is out of mixed precision's reach.
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))

    def forward(self, hidden_states: torch.Tensor) -> Routing:
        scores = F.linear(at_least_float32(hidden_states), at_least_float32(self.weight)).sigmoid()
        with torch.no_grad():
            experts, margins = self._choose(scores + self.e_score_correction_bias)
        weights = scores.gather(1, experts)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return Routing(experts, weights, margins)

    def _choose(self, biased: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.groups > 1:
            grouped = biased.view(len(biased), self.groups, -1)
            kept = grouped.topk(2, dim=-1).values.sum(-1).topk(self.groups_kept, dim=-1).indices
            refused = torch.ones(grouped.shape[:2], dtype=torch.bool, device=biased.device).scatter(1, kept, False)
            biased = grouped.masked_fill(refused.unsqueeze(-1), -torch.inf).flatten(1)
        best, experts = biased.topk(min(self.top_k + 1, biased.shape[1]), dim=-1)
        if best.shape[1] == self.top_k:
            return experts, best.new_full(best.shape[:1], torch.inf)
        return experts[:, :-1], best[:, -2] - best[:, -1]


class Experts(nn.Module):
    """E relu² experts with stacked weights: `up_proj` [E, I, hidden], `down_proj` [E, hidden, I]."""

    def __init__(self, config: NemotronHConfig, hidden_size: int) -> None:
        super().__init__()
        experts, width = config.n_routed_experts, config.moe_intermediate_size
        self.up_proj = nn.Parameter(torch.empty(experts, width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden_size, width))

    def forward(self, hidden_states: torch.Tensor, routing: Routing) -> torch.Tensor:
        """The weighted sum over each token's experts, accumulated in float32, in the input's dtype."""
        top_k = routing.experts.shape[1]
        chosen = routing.experts.flatten()
        order = chosen.argsort(stable=True)
        tokens = order // top_k
        counts = chosen.bincount(minlength=len(self.up_proj)).tolist()
        outputs = [
            F.linear(squared_relu(F.linear(rows, up)), down)
            for rows, up, down in zip(
                torch.split(hidden_states[tokens], counts), self.up_proj.unbind(), self.down_proj.unbind(), strict=True
            )
        ]
        weighted = at_least_float32(torch.cat(outputs)) * routing.weights.flatten()[order].unsqueeze(1)
        total = torch.zeros(hidden_states.shape, dtype=weighted.dtype, device=hidden_states.device)
        return total.index_add(0, tokens, weighted).to(hidden_states.dtype)


class MoE(nn.Module):
    """[T, hidden] to [T, hidden] and the routing that led there."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        latent = config.moe_latent_size
        self.scaling = config.routed_scaling_factor
        self.gate = Router(config)
        self.experts = Experts(config, config.hidden_size if latent is None else latent)
        self.shared_experts = (
            MLP(config, config.moe_shared_expert_intermediate_size * config.n_shared_experts)
            if config.n_shared_experts
            else None
        )
        if latent is not None:
            self.fc1_latent_proj = nn.Linear(config.hidden_size, latent, bias=config.mlp_bias)
            self.fc2_latent_proj = nn.Linear(latent, config.hidden_size, bias=config.mlp_bias)
        self.has_latent = latent is not None

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        routing = self.gate(hidden_states)
        routed = self.fc1_latent_proj(hidden_states) if self.has_latent else hidden_states
        # The engine scales the sum, not the weights, and before the latent projection: in bfloat16 that rounds
        # differently, and the projection may have a bias.
        routed = self.experts(routed, routing) * self.scaling
        if self.has_latent:
            routed = self.fc2_latent_proj(routed)
        return (routed if self.shared_experts is None else routed + self.shared_experts(hidden_states)), routing
