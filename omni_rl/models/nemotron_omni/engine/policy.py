"""Nemotron Omni in vLLM, with what an RL rollout needs and vLLM's class lacks.

Two differences: the towers compute in the model's dtype (vLLM casts their output to bfloat16 by name), and a recorder,
once attached, sees what the towers received.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.nano_nemotron_vl import (
    NanoNemotronVLDummyInputsBuilder,
    NanoNemotronVLMultiModalProcessor,
    NanoNemotronVLProcessingInfo,
    NemotronH_Nano_VL_V2,
)
from vllm.model_executor.models.parakeet import ProjectedParakeet
from vllm.multimodal import MULTIMODAL_REGISTRY

from omni_rl.models.nemotron_omni.evs import retention_mask

# Frames that go through the tower in one call; even, so that no pair of frames that shares a patch is cut apart.
FRAMES_PER_CALL = 128


class MediaRecorder(Protocol):
    """Whom the policy tells what it received."""

    def received(
        self, batch: Mapping[str, Any], features: tuple[torch.Tensor, ...], kept: Sequence[torch.Tensor] = ()
    ) -> None:
        """A batch of media items of one modality, their features, and what was kept of each pruned video."""


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
        self.recorder: MediaRecorder | None = None
        self._kept: list[torch.Tensor] = []
        if self.sound_encoder is not None:
            # The parent's constructor built it from its own class; same modules, another forward.
            self.sound_encoder.__class__ = DtypeTrueParakeet

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
