"""Assembles NemotronH: embeddings, blocks, final norm, head. Shapes: T packed tokens, L MoE layers, K experts a
token."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import NemotronHConfig

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.language.block import Block
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.moe import RoutingRecord
from omni_rl.models.nemotron_omni.language.norm import AddRMSNorm


@dataclass(frozen=True)
class MoEConfig:
    """What parallelism needs to know about the experts."""

    n_routed_experts: int
    n_activated_experts: int
    n_shared_experts: int
    dim: int
    moe_inter_dim: int


def _refuse_what_is_not_computed(config: NemotronHConfig) -> None:
    """Refuse a configuration with which this copy, or where it has them the engine's, would not be the same
    function."""
    expected = {
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
        "attention_bias": False,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }
    for name, supported in expected.items():
        if (value := getattr(config, name)) != supported:
            raise ConfigError(f"llm_config.{name} is {value!r}; only {supported!r} is supported")
    chosen, there = config.num_experts_per_tok, config.n_routed_experts
    if "E" in config.hybrid_override_pattern and not 0 < chosen <= there:
        raise ConfigError(f"llm_config.num_experts_per_tok is {chosen}, with {there} experts (n_routed_experts)")
    if there % config.n_group or not 0 < config.topk_group <= config.n_group:
        raise ConfigError(
            f"{there} experts cannot be cut in n_group {config.n_group} equal groups of which topk_group "
            f"{config.topk_group} take part"
        )


class NemotronHModel(nn.Module):
    """The decoder without its head."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        if config.num_nextn_predict_layers:
            raise ConfigError(
                f"num_nextn_predict_layers is {config.num_nextn_predict_layers}; multi-token prediction is not "
                "supported, set it to 0"
            )
        if config.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings is true; Nemotron Omni's head is not tied, set it to false")
        _refuse_what_is_not_computed(config)
        self.config = config
        self.moe_config = MoEConfig(
            n_routed_experts=config.n_routed_experts,
            n_activated_experts=config.num_experts_per_tok,
            n_shared_experts=config.n_shared_experts,
            dim=config.hidden_size,
            moe_inter_dim=config.moe_intermediate_size,
        )
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, index) for index in range(len(config.hybrid_override_pattern)))
        self.norm = AddRMSNorm(config.hidden_size, config.layer_norm_epsilon)

    def forward(
        self, inputs_embeds: torch.Tensor, layout: PackedLayout, record: RoutingRecord | None = None
    ) -> torch.Tensor:
        """Return the final hidden states [T, hidden], after the last norm, for embeddings [T, hidden]."""
        mixed, residual = inputs_embeds, None
        for layer in self.layers:
            mixed, residual = layer(mixed, residual, layout, record)
        final: torch.Tensor = self.norm(mixed, residual)[0]
        return final


class NemotronHForCausalLM(nn.Module):
    """The decoder and its head, which is not tied to the embeddings."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        self.config = config
        self.model = NemotronHModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, inputs_embeds: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        """Return logits [T, vocabulary] of packed embeddings [T, hidden]."""
        logits: torch.Tensor = self.lm_head(self.model(inputs_embeds, layout))
        return logits
