"""Random models of every kind that the agent is tried on, small enough for an engine on the CPU."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
TEXT: dict[str, Any] = {"vocab_size": 128, "intermediate_size": 128, "max_position_embeddings": 128}
ENGINE: dict[str, Any] = {"skip_tokenizer_init": True, "enable_prefix_caching": True}
MEDIA: dict[str, Any] = {"skip_mm_profiling": True, "mm_processor_cache_gb": 0}
Tensors = dict[str, torch.Tensor]


class Tiny(NamedTuple):
    """A trainer's model. `served`: the checkpoint that an engine starts from; `tensors`: what the trainer would send of
    itself as it stands; `options`: of the engine."""

    trainer: nn.Module
    served: Path
    tensors: Callable[[], Tensors]
    options: Mapping[str, Any]


def qwen2(directory: Path, engine: torch.dtype) -> Tiny:
    """Dense, with biases and a tied head."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return _text(Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **TEXT, **SIZES)), directory)


def qwen3_moe(directory: Path, engine: torch.dtype) -> Tiny:
    """Four experts a layer, two of them a token; transformers has all of a layer's in one tensor."""
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
    return _text(Qwen3MoeForCausalLM(config), directory)


def qwen2_vl(directory: Path, engine: torch.dtype) -> Tiny:
    """A language model behind a vision tower."""
    from transformers import Qwen2VLForConditionalGeneration

    from tests.watch.trl_models import write_qwen_vl

    model = Qwen2VLForConditionalGeneration.from_pretrained(write_qwen_vl(directory))
    return Tiny(model, directory, lambda: _parameters(model), {"enable_prefix_caching": True, **MEDIA})


def _text(model: nn.Module, directory: Path) -> Tiny:
    save: Any = model.save_pretrained
    save(directory)
    return Tiny(model, directory, lambda: _parameters(model), ENGINE)


def _parameters(model: nn.Module) -> Tensors:
    return _detached(model.named_parameters())


def _detached(named: Any) -> Tensors:
    return {name: value.detach().clone() for name, value in named}


KINDS: Mapping[str, Callable[[Path, torch.dtype], Tiny]] = {
    "qwen2": qwen2,
    "qwen3_moe": qwen3_moe,
    "qwen2_vl": qwen2_vl,
}
