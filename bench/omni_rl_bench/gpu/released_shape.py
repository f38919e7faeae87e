"""Builds the public 30B-A3B Omni's shape through our classes, on the meta device, and computes what training it takes.

The numbers are those of config.json of nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16 (Hugging Face), without the
fields that no side reads. `python -m omni_rl_bench.gpu.released_shape` prints the table.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.language.block import Block
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

RELEASED: dict[str, Any] = {
    "dtype": "bfloat16",
    "llm_config": {
        "dtype": "bfloat16",
        "vocab_size": 131072,
        "hidden_size": 2688,
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "num_hidden_layers": 52,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "expand": 2,
        "chunk_size": 128,
        "time_step_limit": [0.0, 1e30],
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1856,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": 3712,
        "routed_scaling_factor": 2.5,
        "intermediate_size": 1856,
        "eos_token_id": 11,
    },
    "vision_config": {
        "args": {
            "model": "vit_huge_patch16_224",
            "min_num_patches": 1024,
            "max_num_patches": 13312,
            "cpe_max_size": 2048,
            "register_multiple": 10,
            "cls_token_per_teacher": True,
            "teachers": [
                {"name": "clip", "use_summary": True},
                {"name": "siglip", "use_summary": True},
                {"name": "dino_v2", "use_summary": True},
                {"name": "sam", "use_summary": False},
            ],
        },
        "patch_size": 16,
        "preferred_resolution": [768, 768],
        "video_temporal_patch_size": 2,
        "separate_video_embedder": True,
    },
    "sound_config": {
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "num_hidden_layers": 24,
        "intermediate_size": 4096,
        "conv_kernel_size": 9,
        "convolution_bias": False,
        "subsampling_conv_channels": 256,
        "subsampling_conv_kernel_size": 3,
        "subsampling_conv_stride": 2,
        "subsampling_factor": 8,
        "num_mel_bins": 128,
        "projection_hidden_size": 4096,
        "projection_bias": False,
        "sampling_rate": 16000,
    },
}

_FLOAT32, _BFLOAT16 = 4, 2
# Master weights, gradients and AdamW's two moments.
_STATE_BYTES = 4 * _FLOAT32


@dataclass(frozen=True)
class RankMemory:
    """The GiB that a rank of FSDP2 needs, without activations and logits.

    `state` are sharded float32 weights, gradients and AdamW moments. `root` are bfloat16 copies of the root unit,
    gathered from forward to the end of backward. `blocks` are two gathered blocks (one at work, one prefetched) in
    bfloat16 and one block's unsharded bfloat16 gradients.
    """

    state: float
    root: float
    blocks: float

    @property
    def total(self) -> float:
        return self.state + self.root + self.blocks


def build() -> NemotronOmniForConditionalGeneration:
    """Return the released shape on the meta device: no memory, no values."""
    with torch.device("meta"):
        return NemotronOmniForConditionalGeneration(NemotronOmniConfig(**json.loads(json.dumps(RELEASED))))


def parameters_by_part(model: NemotronOmniForConditionalGeneration) -> dict[str, int]:
    """Return the number of parameters of each child of the root, by its name."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}


def memory(model: NemotronOmniForConditionalGeneration, ranks: int) -> RankMemory:
    """Return the memory that training takes on each of `ranks` GPUs."""
    blocks = sorted(sum(p.numel() for p in m.parameters()) for m in model.modules() if isinstance(m, Block))
    everything = sum(parameter.numel() for parameter in model.parameters())
    gib = 1 / 2**30
    return RankMemory(
        state=everything * _STATE_BYTES / ranks * gib,
        root=(everything - sum(blocks)) * _BFLOAT16 * gib,
        blocks=3 * blocks[-1] * _BFLOAT16 * gib,
    )


def released_names(model: NemotronOmniForConditionalGeneration) -> Iterator[tuple[str, torch.Size]]:
    """Yield every tensor's released name and shape."""
    for name, tensor in model.state_dict().items():
        for released, part in model.state_dict_adapter.convert_single_tensor_to_hf(name, tensor):
            yield released, part.shape


def main() -> None:
    model = build()
    needed = memory(model, 8)
    names = list(released_names(model))
    lines = [f"{name}: {list(shape)}" for name, shape in names]
    lines += [f"{part}: {count:,} parameters" for part, count in parameters_by_part(model).items()]
    lines.append(f"all: {sum(p.numel() for p in model.parameters()):,} parameters in {len(names):,} released tensors")
    lines.append(f"8 GPUs, GiB a rank: {asdict(needed)}, total {needed.total:.1f}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
