"""Nemotron Omni in vLLM, with what an RL rollout needs and vLLM's class lacks.

Three differences: the towers compute in the model's dtype (vLLM casts their output to bfloat16 by name), every linear
on CPU keeps its plain weight (vLLM packs and drops it, after which no update could reach it), and a recorder, once
attached, sees what the towers received and which experts were chosen.
"""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.models.nano_nemotron_vl import (
    NanoNemotronVLDummyInputsBuilder,
    NanoNemotronVLMultiModalProcessor,
    NanoNemotronVLProcessingInfo,
    NemotronH_Nano_VL_V2,
)
from vllm.model_executor.models.parakeet import ProjectedParakeet
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from omni_rl.models.nemotron_omni.evs import retention_mask
from omni_rl.rollout.recorder import StepRecorder

# Frames that go through the tower in one call; even, so that no pair of frames that shares a patch is cut apart.
FRAMES_PER_CALL = 128


class PlainEmbeddingMethod(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """The output head multiplies by the weight itself, not by a packed copy made at loading."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.cpu_linear = nn.functional.linear


class DtypeTrueParakeet(ProjectedParakeet):  # type: ignore[misc]
    """The sound encoder without the cast to bfloat16 before its projection."""

    def forward(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """[clips, frames, mel] and bool [clips, frames] to [clips, tokens, llm_hidden]."""
        encoded = self.encoder(input_features=input_features, attention_mask=attention_mask)
        projected: torch.Tensor = self.projection(encoded.last_hidden_state)
        return projected


@MULTIMODAL_REGISTRY.register_processor(
    NanoNemotronVLMultiModalProcessor,
    info=NanoNemotronVLProcessingInfo,
    dummy_inputs=NanoNemotronVLDummyInputsBuilder,
)
class OmniPolicy(NemotronH_Nano_VL_V2):  # type: ignore[misc]
    """vLLM's Nemotron Omni with the differences named above. `recorder` is None until one is attached."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.recorder: StepRecorder | None = None
        self._kept: list[torch.Tensor] = []
        if self.sound_encoder is not None:
            # The parent's constructor built it from its own class; same modules, another forward.
            self.sound_encoder.__class__ = DtypeTrueParakeet
        if current_platform.is_cpu():
            keep_plain_weights(self)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: object | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """One step: `positions` int64 [rows], `inputs_embeds` [rows, hidden] or `input_ids` [rows]."""
        hidden: torch.Tensor = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
        if self.recorder is not None:
            self.recorder.finish_step(positions)
        return hidden

    def embed_multimodal(self, **kwargs: object) -> tuple[torch.Tensor, ...]:
        """Features [tokens, hidden] of every item of one modality's batch."""
        features = tuple(super().embed_multimodal(**kwargs))
        if self.recorder is not None:
            self.recorder.received(kwargs, features, self._kept)
        self._kept = []
        return features

    def _process_video_input(self, video_input: Any) -> tuple[torch.Tensor, ...]:
        """What vLLM does with videos; but it tells nobody which tokens it keeps when it prunes."""
        if not self.video_pruning_rate:
            whole: tuple[torch.Tensor, ...] = super()._process_video_input(video_input)
            return whole
        frames = video_input["num_patches"].tolist()
        temporal = self.video_temporal_patch_size
        embeddings = []
        for pixels, indices, duration in zip(
            video_input["pixel_values_flat"].split(frames),
            video_input["frames_indices"].split(frames),
            video_input["frame_duration_ms"].tolist(),
            strict=True,
        ):
            tubelets = self.extract_feature(pixels, num_frames=len(pixels))
            kept = retention_mask(tubelets, self.video_pruning_rate)
            self._kept.append(kept)
            counts = kept.sum(1).tolist()
            embeddings.append(
                self._create_final_video_embeddings(tubelets[kept], counts, indices.tolist(), duration, temporal)
            )
        return tuple(embeddings)

    def extract_feature_dynamic(self, pixel_values: torch.Tensor, imgs_sizes: list[tuple[int, int]]) -> torch.Tensor:
        """Packed images, sizes (height, width) in pixels, to [1, tokens of all images, llm_hidden]."""
        _, patches = self.vision_model(pixel_values, imgs_sizes=imgs_sizes)
        if self.vision_final_layernorm is not None:
            patches = self.vision_final_layernorm(patches)
        features: torch.Tensor = self.mlp1(self.pixel_shuffle_dynamic_res(patches, imgs_sizes=imgs_sizes))
        return features

    def extract_feature(self, pixel_values: torch.Tensor, num_frames: int | None = None) -> torch.Tensor:
        """Frames or tiles of one size [n, 3, height, width] to [groups, tokens, llm_hidden].

        With `num_frames`, consecutive frames share patches, `video_temporal_patch_size` of them at a time.
        """
        rows, columns = (side // self.patch_size for side in pixel_values.shape[-2:])
        temporal = self.video_temporal_patch_size if num_frames is not None else 1
        features = []
        for chunk in torch.split(pixel_values, FRAMES_PER_CALL - FRAMES_PER_CALL % temporal):
            extra = {"num_frames": chunk.shape[0]} if temporal > 1 else {}
            _, patches = self.vision_model(chunk, **extra)
            if self.vision_final_layernorm is not None:
                patches = self.vision_final_layernorm(patches)
            grid = patches.reshape(patches.shape[0], rows, columns, -1)
            features.append(self.mlp1(self.pixel_shuffle(grid, scale_factor=self.downsample_ratio).flatten(1, 2)))
        return torch.cat(features)


def keep_plain_weights(model: nn.Module) -> None:
    """Mark every linear of `model` before its weights are loaded, so that vLLM leaves them as they are."""
    for module in model.modules():
        if isinstance(module, LinearBase):
            # vLLM's own mark for layers whose weight is read elsewhere: F.linear, nothing packed, nothing dropped.
            module._cpu_skip_gemm_dispatch = True
        elif isinstance(module, VocabParallelEmbedding):
            module.quant_method = PlainEmbeddingMethod()
