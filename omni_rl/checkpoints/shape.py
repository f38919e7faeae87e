"""Defines the small checkpoint's shape: every part of Nemotron Omni, each as small as a CPU needs it to be."""

from typing import Any

from omni_rl.checkpoints import tokenizer
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.radio_sizes import RADIO_SIZES

PATTERN = "M*EM-ME"
RADIO = "omni_tiny"


def small_config(pattern: str = PATTERN, dtype: str = "bfloat16") -> NemotronOmniConfig:
    """Return the configuration for a pattern of M (Mamba2), * (attention), E (MoE) and - (MLP).

    Attention heads are 32 wide, the engine's least on a CPU. An image becomes 4 to 64 tokens, two frames of a video
    about 8, a second of sound 13.
    """
    hidden = 128
    language: dict[str, Any] = {
        "architectures": ["NemotronHForCausalLM"],
        "dtype": dtype,
        "vocab_size": tokenizer.VOCABULARY,
        "hidden_size": hidden,
        "hybrid_override_pattern": pattern,
        "num_hidden_layers": len(pattern),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 256,
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "ssm_state_size": 32,
        "n_groups": 2,
        "conv_kernel": 4,
        "chunk_size": 64,
        "expand": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 64,
        "moe_shared_expert_intermediate_size": 128,
        "routed_scaling_factor": 2.5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "mamba_ssm_cache_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": tokenizer.IM_END,
        "pad_token_id": 0,
    }
    vision = {
        "args": {
            "model": RADIO,
            "min_num_patches": 16,
            "max_num_patches": 256,
            "cpe_max_size": 512,
            "register_multiple": 16,
            "teachers": [{"name": "clip"}],
            "cls_token_per_teacher": True,
        },
        "patch_size": 16,
        "preferred_resolution": [64, 64],
        "video_temporal_patch_size": 2,
        "video_target_num_patches": 32,
        "video_maintain_aspect_ratio": True,
        "separate_video_embedder": True,
    }
    sound = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "conv_kernel_size": 9,
        "subsampling_factor": 8,
        "subsampling_conv_channels": 32,
        "subsampling_conv_kernel_size": 3,
        "subsampling_conv_stride": 2,
        "num_mel_bins": 80,
        "sampling_rate": 16000,
        "projection_hidden_size": 96,
        "projection_bias": False,
    }
    return NemotronOmniConfig(
        vision_config=vision,
        llm_config=language,
        sound_config=sound,
        force_image_size=64,
        projector_hidden_size=256,
        vit_hidden_size=RADIO_SIZES[RADIO][0],
        img_context_token_id=tokenizer.IMAGE,
        sound_context_token_id=tokenizer.SOUND,
        video_context_token_id=tokenizer.VIDEO,
        video_pruning_rate=0.0,
        dtype=dtype,
    )
