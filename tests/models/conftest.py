"""A random Omni that is built in a moment: every kind of block, all three towers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import NemotronHConfig

from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.packed import PackedMedia

LANGUAGE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "hybrid_override_pattern": "M*EM-E",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "chunk_size": 16,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 48,
    "routed_scaling_factor": 2.5,
}

CONFIG: dict[str, Any] = {
    "llm_config": LANGUAGE,
    "vision_config": {
        "args": {
            "model": "omni_tiny",
            "min_num_patches": 4,
            "max_num_patches": 64,
            "cpe_max_size": 256,
            "register_multiple": 8,
            "teachers": [{"name": "clip"}, {"name": "dino"}],
            "cls_token_per_teacher": True,
        },
        "preferred_resolution": [64, 64],
        "video_temporal_patch_size": 2,
    },
    "sound_config": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "conv_kernel_size": 5,
        "subsampling_conv_channels": 8,
        "num_mel_bins": 16,
        "projection_hidden_size": 40,
        "projection_bias": False,
        "sampling_rate": 16000,
        "subsampling_factor": 8,
        "subsampling_conv_kernel_size": 3,
        "subsampling_conv_stride": 2,
    },
    "force_image_size": 64,
    "projector_hidden_size": 80,
    "vit_hidden_size": 64,
    "dtype": "float32",
}


def language_config(**changes: Any) -> NemotronHConfig:
    return NemotronHConfig(**(LANGUAGE | changes))


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights that make every part matter: matrices of unit gain, everything else away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("running_var",)):
                tensor.copy_(noise.abs() + 0.5)
            elif tensor.ndim >= 2 and "position_embedding" not in name:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
            else:
                tensor.add_(noise * 0.3)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def config() -> NemotronOmniConfig:
    return NemotronOmniConfig(**json.loads(json.dumps(CONFIG)))


@pytest.fixture(scope="session")
def omni(config: NemotronOmniConfig) -> NemotronOmniForConditionalGeneration:
    """Random, float32; read only."""
    model = NemotronOmniForConditionalGeneration(config)
    randomise(model)
    return model


@pytest.fixture(scope="session")
def saved(omni: NemotronOmniForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`omni` on disk, float32; read only."""
    directory = tmp_path_factory.mktemp("omni")
    omni.save_pretrained(directory)
    return directory


@pytest.fixture
def media() -> Callable[..., PackedMedia]:
    """Makes one media item at given positions: an image 32 x 64 (2 tokens), a video of 3 such frames (4 tokens),
    a sound of 40 frames (5 tokens)."""

    def make(modality: str, positions: list[int], seed: int = 0) -> PackedMedia:
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            "image": lambda: {"pixel_values_flat": torch.randn(3, 32, 64, generator=generator)},
            "video": lambda: {"pixel_values_flat_video": torch.randn(3, 3, 32, 64, generator=generator)},
            "audio": lambda: {
                "input_audio_features": torch.randn(1, 40, 16, generator=generator),
                "feature_attention_mask": torch.ones(1, 40, dtype=torch.bool),
            },
        }[modality]()
        return PackedMedia(modality, torch.tensor(positions), tensors, sample=f"sample-{seed}")  # type: ignore[arg-type]

    return make
