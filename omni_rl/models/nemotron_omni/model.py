"""The training copy of Nemotron Omni: towers, projectors and language model under one root.

Shapes: T packed tokens, N scored positions, L MoE layers, K experts a token.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni import checkpoint, features, sound, vision
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mamba import StateDecay
from omni_rl.models.nemotron_omni.language.model import NemotronHForCausalLM
from omni_rl.models.nemotron_omni.language.moe import Router, RoutingRecord
from omni_rl.models.nemotron_omni.layers import RMSNorm, SquaredReLU
from omni_rl.models.nemotron_omni.logprobs import token_logprobs
from omni_rl.models.nemotron_omni.packed import PackedMedia, PackedScores, PackedSequences
from omni_rl.models.nemotron_omni.projectors import SoundProjection, VisionProjector
from omni_rl.models.nemotron_omni.scatter import scatter_features
from omni_rl.models.nemotron_omni.state_dict_adapter import NemotronOmniStateDictAdapter

__all__ = [
    "ModelClass",
    "NemotronOmniConfig",
    "NemotronOmniForConditionalGeneration",
    "RMSNorm",
    "SoundProjection",
    "SquaredReLU",
    "VisionProjector",
    "_ModelProxy",
    "logger",
]

logger = logging.getLogger(__name__)


class _ModelProxy:
    """Lets parallelism find `model.moe_config` and the decoder; no module, so no `model.` enters the state dict."""

    def __init__(self, llm: NemotronHForCausalLM) -> None:
        self.language_model = llm.model
        self.moe_config = llm.model.moe_config


class NemotronOmniForConditionalGeneration(nn.Module):
    """Nemotron Omni for training: differentiable scores of token sequences with images, sounds and videos."""

    def __init__(self, config: NemotronOmniConfig, backend: BackendConfig | None = None, **kwargs: Any) -> None:
        super().__init__()
        if config.vision_config is None or config.llm_config is None:
            raise ConfigError("the configuration needs a vision_config and an llm_config; load it from a checkpoint")
        self.config = config
        self.backend = backend or BackendConfig()
        self.downsample_ratio = config.downsample_ratio
        self.force_image_size = config.force_image_size
        self.patch_size = config.patch_size
        self.ps_version = config.ps_version
        self.num_image_token = int((self.force_image_size // self.patch_size) ** 2 * self.downsample_ratio**2)
        self.img_context_token_id = config.img_context_token_id
        self.video_context_token_id = config.video_context_token_id
        self.sound_context_token_id = config.sound_context_token_id
        self.video_temporal_patch_dim = config.video_temporal_patch_size
        self.state_dict_adapter = NemotronOmniStateDictAdapter()

        llm_hidden = config.llm_config.hidden_size
        self.vision_model = vision.build_tower(config)
        self._make_missing_buffers_non_persistent(self.vision_model)
        self.vision_projector = VisionProjector(
            config.vit_hidden_size, config.projector_hidden_size, llm_hidden, config.downsample_ratio
        )
        self.sound_encoder: sound.SoundEncoder | None = None
        self.sound_projection: SoundProjection | None = None
        if config.sound_config is not None:
            section = config.sound_config
            self.sound_encoder = sound.build_encoder(config)
            self.sound_projection = SoundProjection(
                section.hidden_size, section.projection_hidden_size, llm_hidden, section.projection_bias
            )
        self.language_model = NemotronHForCausalLM(config.llm_config)
        self.model = _ModelProxy(self.language_model)

    @staticmethod
    def _make_missing_buffers_non_persistent(module: nn.Module) -> None:
        """Keep `summary_idxs`, which the configuration gives, out of the state dict."""
        for part in module.modules():
            if "summary_idxs" in part._buffers:
                part._non_persistent_buffers_set.add("summary_idxs")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *model_args: Any, **kwargs: Any
    ) -> "NemotronOmniForConditionalGeneration":
        """Load a local checkpoint directory in released names, safetensors only.

        `dtype` (a torch dtype or its name; default: the checkpoint's) is the dtype of the parameters; A_log and the
        router's bias stay float32. Raises `CheckpointError` that lists missing and unexpected tensors.
        """
        directory = Path(pretrained_model_name_or_path)
        config = NemotronOmniConfig.from_pretrained(directory)
        config.name_or_path = str(directory)  # where `save_pretrained` finds the tokenizer
        dtype = checkpoint.parse_dtype(kwargs.pop("dtype", None), default=config.dtype or torch.float32)
        model = cls(config, *model_args, **kwargs)._cast(dtype)
        model.state_dict_adapter.load(model.state_dict(), checkpoint.read_released(directory))
        return model

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a directory that vLLM serves unchanged, in `dtype` (default: the embeddings')."""
        embeddings = self.language_model.model.embed_tokens.weight
        checkpoint.save(self, Path(directory), embeddings.dtype if dtype is None else dtype)

    def _cast(self, dtype: torch.dtype) -> "NemotronOmniForConditionalGeneration":
        """All floating-point tensors to `dtype`, but those that every engine holds in float32."""
        self.to(dtype)
        for module in self.modules():
            if isinstance(module, StateDecay):
                module.float()
            elif isinstance(module, Router):
                module.e_score_correction_bias = module.e_score_correction_bias.float()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The language model's input embeddings."""
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.lm_head

    def embed_packed(self, ids: torch.Tensor, media: tuple[PackedMedia, ...]) -> torch.Tensor:
        """Embeddings [T, hidden] of packed `ids` int64 [T], with every media item's features in its places."""
        embeds: torch.Tensor = self.language_model.model.embed_tokens(ids)
        if not media:
            return embeds
        return scatter_features(embeds, media, features.media_features(self, media))

    def score_packed(
        self,
        batch: PackedSequences,
        *,
        temperature: float | torch.Tensor = 1.0,
        logprob_chunk: int | None = None,
        record_routing: bool = True,
    ) -> PackedScores:
        """Differentiable logprobs of the tokens under `batch.score_mask`, media included, in one call.

        `temperature` divides the float32 logits: a number, or float32 [N] for the N scored tokens. `logprob_chunk`
        positions have their logits in memory at once. Raises `PromptError` where media and placeholders differ.
        """
        layout = PackedLayout.of(batch.cu_seqlens)
        scored = batch.score_mask.nonzero().squeeze(1)
        assert not (layout.position[scored] == 0).any(), "a sequence's first token has nothing before it to score it"
        record = RoutingRecord() if record_routing else None
        hidden = self.language_model.model(self.embed_packed(batch.ids, batch.media), layout, record)
        logprobs = token_logprobs(
            hidden[scored - 1],
            self.language_model.lm_head.weight,
            batch.ids[scored],
            temperature,
            logprob_chunk or self.backend.logprob_chunk,
        )
        if record is None or not record.layers:
            return PackedScores(logprobs, None, None)
        return PackedScores(logprobs, record.experts(), record.margins())


ModelClass = NemotronOmniForConditionalGeneration
