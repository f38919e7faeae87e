"""Random models of every kind that the agent is tried on, small enough for an engine on the CPU."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
TEXT: dict[str, Any] = {"vocab_size": 128, "intermediate_size": 128, "max_position_embeddings": 128}


def qwen2() -> nn.Module:
    """Dense, with biases and a tied head."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model: nn.Module = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **TEXT, **SIZES))
    return model


def qwen3_moe() -> nn.Module:
    """Four experts a layer, two of them a token."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        head_dim=32,
        tie_word_embeddings=False,
        **TEXT,
        **SIZES,
    )
    model: nn.Module = Qwen3MoeForCausalLM(config)
    return model


KINDS: Mapping[str, Callable[[], nn.Module]] = {"qwen2": qwen2, "qwen3_moe": qwen3_moe}
