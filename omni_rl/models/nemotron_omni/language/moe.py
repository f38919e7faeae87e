"""Computes a mixture of experts: a float32 sigmoid router, relu² experts, one shared expert, optional latent
projections.

Shapes: T tokens, E experts of width I, K experts chosen a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import NemotronHConfig

from omni_rl.models.nemotron_omni.language.mlp import MLP
from omni_rl.models.nemotron_omni.layers import as_autocast, exactly
from omni_rl.models.precision import at_least_float32


@dataclass(frozen=True)
class Routing:
    """One layer's choices: `experts` int64 [T, K], best first; `weights` float32 [T, K]; `margins` float32 [T].

    A margin is the gap between the last chosen and the first refused biased score: how near the choice was to another.
    `own` int64 [T, K] has what the router chose by itself, where `experts` were replayed.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    margins: torch.Tensor
    own: torch.Tensor

    @classmethod
    def joined(cls, parts: "Sequence[Routing]") -> "Routing":
        """Return the routing of sequences that were routed one by one."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


class RoutingRecord:
    """Takes every MoE layer's routing during a forward; a layer that is recomputed replaces its own.

    Given `replay` int [T, L, K], it also has the experts that layers use in place of their own choice (R3: Ma et al.
    2025, "Stabilizing MoE Reinforcement Learning by Aligning Training and Inference Routers"); a row of -1 means the
    layer's own choice.

    A plain object on purpose: FSDP rebuilds the dicts, lists and dataclasses that it finds among a unit's arguments.
    """

    def __init__(self, replay: torch.Tensor | None = None) -> None:
        self.layers: dict[int, Routing] = {}
        self._replay = replay

    def replayed(self, number: int) -> torch.Tensor | None:
        """Return the replayed experts, int [T, K], of MoE layer `number`, counted among the MoE layers; None without
        replay."""
        return None if self._replay is None else self._replay[:, number]

    def experts(self) -> torch.Tensor:
        """Return the routers' own choices, int16 [T, L, K], layers in the model's order."""
        return torch.stack([self.layers[index].own.to(torch.int16) for index in sorted(self.layers)], dim=1)

    def margins(self) -> torch.Tensor:
        """Return the margins, float32 [T, L]."""
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
        # The bias is a buffer, which mixed precision leaves alone: rounded to bfloat16 it would change most choices.
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Router":
        """Do what `to`, `half` and the like do, but without rounding the bias."""
        bias, keep = self.e_score_correction_bias, exactly(fn)
        super()._apply(lambda tensor: keep(tensor) if tensor is bias else fn(tensor), recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, hidden_states: torch.Tensor, replayed: torch.Tensor | None = None) -> Routing:
        with torch.autocast(hidden_states.device.type, enabled=False):
            scores = self._scores(at_least_float32(hidden_states))
        with torch.no_grad():
            own, margins = self._choose(scores + self.e_score_correction_bias)
            experts = own if replayed is None else torch.where(replayed[:, :1] >= 0, replayed.long(), own)
        weights = scores.gather(1, experts)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return Routing(experts, weights, margins, own)

    def _scores(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the scores [T, E] of rows [T, hidden], at least in float32."""
        return F.linear(rows, at_least_float32(self.weight)).sigmoid()

    def _choose(self, biased: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._best(self._limit(biased))

    def _limit(self, biased: torch.Tensor) -> torch.Tensor:
        """Return [T, E] with -inf in the groups that take no part."""
        if self.groups == 1:
            return biased
        grouped = biased.view(len(biased), self.groups, -1)
        kept = grouped.topk(2, dim=-1).values.sum(-1).topk(self.groups_kept, dim=-1).indices
        refused = torch.ones(grouped.shape[:2], dtype=torch.bool, device=biased.device).scatter(1, kept, False)
        return grouped.masked_fill(refused.unsqueeze(-1), -torch.inf).flatten(1)

    def _best(self, limited: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the K best of [T, E], best first, and their margins."""
        best, experts = limited.topk(min(self.top_k + 1, limited.shape[1]), dim=-1)
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
        """Return the weighted sum over each token's experts, accumulated in float32, in the input's dtype."""
        matrices = as_autocast(hidden_states, self.up_proj, self.down_proj)
        summed: torch.Tensor = _Sorted.apply(*matrices, routing.weights, routing.experts)  # type: ignore[no-untyped-call]
        return summed


class _Sorted(torch.autograd.Function):
    """Runs the experts over rows sorted by expert, R = T·K of them, into buffers for all experts.

    Autograd would cut those and join them again, and with them the weights and their gradients.
    """

    @staticmethod
    def forward(ctx: Any, *args: torch.Tensor) -> torch.Tensor:
        hidden, up, down, weights, experts = args
        chosen = experts.flatten()
        order = chosen.argsort(stable=True)
        tokens = order // experts.shape[1]
        ends = chosen.bincount(minlength=len(up)).cumsum(0).tolist()
        parts = [(e, slice(start, end)) for e, (start, end) in enumerate(pairwise([0, *ends])) if end > start]
        rows = hidden.index_select(0, tokens)
        positive, out = rows.new_empty(len(rows), up.shape[1]), torch.empty_like(rows)
        for expert, part in parts:
            torch.mm(rows[part], up[expert].T, out=positive[part])
        squared = positive.relu_().square()
        for expert, part in parts:
            torch.mm(squared[part], down[expert].T, out=out[part])
        ctx.save_for_backward(up, down, weights, order, rows, positive, squared, out)
        ctx.parts = parts
        weighted = at_least_float32(out) * weights.flatten()[order].unsqueeze(1)
        return _at_tokens(weighted, order, len(hidden)).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast(
            grad.device.type, enabled=False
        ):  # sums stay exact even if backward is called under autocast
            return _Sorted._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        up, down, weights, order, rows, positive, squared, out = ctx.saved_tensors
        tokens = order // weights.shape[1]
        arrived = at_least_float32(grad).index_select(0, tokens)
        grad_weights = torch.empty_like(weights.flatten())
        grad_weights[order] = torch.linalg.vecdot(arrived, at_least_float32(out))
        arrived = arrived.mul_(weights.flatten()[order].unsqueeze(1)).to(out.dtype)
        grad_up, grad_down = torch.zeros_like(up), torch.zeros_like(down)
        grad_inner, grad_rows = torch.empty_like(positive), torch.empty_like(rows)
        for expert, part in ctx.parts:
            torch.mm(arrived[part].T, squared[part], out=grad_down[expert])
            torch.mm(arrived[part], down[expert], out=grad_inner[part])
        grad_inner.mul_(positive).mul_(2)
        for expert, part in ctx.parts:
            torch.mm(grad_inner[part].T, rows[part], out=grad_up[expert])
            torch.mm(grad_inner[part], up[expert], out=grad_rows[part])
        grad_hidden = _at_tokens(at_least_float32(grad_rows), order, len(grad))
        return grad_hidden.to(grad.dtype), grad_up, grad_down, grad_weights.view_as(weights), None


def _at_tokens(rows: torch.Tensor, order: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return rows [R, hidden], of which row i is number order[i] of all tokens' choices, summed at their tokens: [T,
    hidden].

    On a device `index_add_` adds in another order every time: two scorings by the same weights would differ.
    """
    if rows.device.type != "cpu":
        return sum_by_token(rows, order, tokens)
    return rows.new_zeros(tokens, rows.shape[1]).index_add_(0, order // (len(order) // tokens), rows)


def sum_by_token(rows: torch.Tensor, order: torch.Tensor, tokens: int) -> torch.Tensor:
    """Do what `_at_tokens` does, adding each token's choices in their order, so that no addition overtakes another."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return rows.index_select(0, back).view(tokens, len(order) // tokens, -1).sum(1)


class MoE(nn.Module):
    """Returns [T, hidden] for [T, hidden], and the routing that led there; `replayed` int [T, K] takes the router's
    place."""

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

    def forward(
        self, hidden_states: torch.Tensor, replayed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Routing]:
        routing = self.gate(hidden_states, replayed)
        routed = self.fc1_latent_proj(hidden_states) if self.has_latent else hidden_states
        # The engine scales the sum, not the weights, and before the latent projection: in bfloat16 that rounds
        # differently, and the projection may have a bias.
        routed = self.experts(routed, routing) * self.scaling
        if self.has_latent:
            routed = self.fc2_latent_proj(routed)
        return (routed if self.shared_experts is None else routed + self.shared_experts(hidden_states)), routing
