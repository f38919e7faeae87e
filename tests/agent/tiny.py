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


def qwen2_grouped(directory: Path, engine: torch.dtype) -> Tiny:
    """One key and value head for both of its attention heads: two workers hold the same one."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = SIZES | {"num_key_value_heads": 1}
    return _text(Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **TEXT, **sizes)), directory)


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


def omni(directory: Path, engine: torch.dtype) -> Tiny:
    """Mamba, attention, experts that are not gated, a vision and a sound tower: vLLM's own class, which serves it on
    the CPU once it has experts and small towers for it."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.nano_nemotron_vl import NemotronH_Nano_VL_V2
    from vllm.transformers_utils.configs.radio import VIT_TIMM_DIM_BY_NAME

    from omni_rl import numba_beside_vllm
    from omni_rl.config import SMALL_CHECKPOINT
    from omni_rl.models.nemotron_omni import radio_sizes
    from omni_rl.models.nemotron_omni.checkpoint import released_state
    from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
    from omni_rl.models.nemotron_omni.engine import experts
    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
    from omni_rl.rollout.startup import ServeIn

    numba_beside_vllm.hide()
    VIT_TIMM_DIM_BY_NAME.update(radio_sizes.RADIO_SIZES)
    experts.register()
    # Not by its name: vLLM would look at it in a process that has none of the above.
    ModelRegistry.register_model(NemotronOmniConfig.model_type, NemotronH_Nano_VL_V2)
    model = NemotronOmniForConditionalGeneration.from_pretrained(SMALL_CHECKPOINT, dtype=torch.float32)
    options = {
        "hf_overrides": ServeIn(engine),
        # It crashes with Mamba on a CPU.
        "enable_prefix_caching": False,
        "limit_mm_per_prompt": {"image": 1, "audio": 1, "video": 1},
        **MEDIA,
    }
    return Tiny(model, SMALL_CHECKPOINT, lambda: _detached(released_state(model, torch.float32)), options)


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
    "qwen2_grouped": qwen2_grouped,
    "qwen3_moe": qwen3_moe,
    "qwen2_vl": qwen2_vl,
    "omni": omni,
}
