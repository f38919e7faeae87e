"""Assembles the modules of Nemotron Omni: towers, projectors and language model under one root; others compute with
them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from omni_rl.errors import ConfigError
from omni_rl.files.companions import Companions
from omni_rl.models.nemotron_omni import sound, vision
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.language.model import NemotronHForCausalLM
from omni_rl.models.nemotron_omni.matched.install import match
from omni_rl.models.nemotron_omni.pixel_shuffle import pixel_shuffle, pixel_shuffle_dynamic
from omni_rl.models.nemotron_omni.projectors import SoundProjection, VisionProjector
from omni_rl.models.nemotron_omni.state_dict_adapter import NemotronOmniStateDictAdapter
from omni_rl.models.nemotron_omni.transformers_interface import TransformersInterface
from omni_rl.models.training_model import TrainingModel


class _ModelProxy:
    """Lets parallelism find `model.moe_config` and the decoder; it is no module, so no `model.` enters the state
    dict."""

    def __init__(self, llm: NemotronHForCausalLM) -> None:
        self.language_model = llm.model
        self.moe_config = llm.model.moe_config


class NemotronOmniParts(TransformersInterface, TrainingModel):
    """Holds the modules, and what their configuration says of them; it has no forward."""

    def __init__(self, config: NemotronOmniConfig, backend: BackendConfig | None = None, **kwargs: Any) -> None:
        super().__init__()
        refuse_unknown(kwargs)
        if config.vision_config is None or config.llm_config is None:
            raise ConfigError("the configuration needs a vision_config and an llm_config; load it from a checkpoint")
        self.config = config
        self.companions: Companions | None = None
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
        self.built_names = frozenset(self.state_dict())
        if self.backend.numerics != "reference":
            match(self, self.backend.numerics)

    @staticmethod
    def _make_missing_buffers_non_persistent(module: nn.Module) -> None:
        """Keep `summary_idxs`, which the configuration gives, out of the state dict."""
        for part in module.modules():
            if "summary_idxs" in part._buffers:
                part._non_persistent_buffers_set.add("summary_idxs")

    def pixel_shuffle(self, x: torch.Tensor, scale_factor: float = 0.5) -> torch.Tensor:
        """Return [n, W·s, H·s, C/s²] of [n, W, H, C], in the order of the configured `ps_version`."""
        return pixel_shuffle(x, scale_factor, self.ps_version)

    def _pixel_shuffle_dynamic_res(self, x: torch.Tensor, imgs_sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return [1, p / r² of all images, C·r²] of patches [1, p of all images, C]; each image on its own grid."""
        return pixel_shuffle_dynamic(x, imgs_sizes, self.patch_size, self.downsample_ratio, self.ps_version)


def refuse_unknown(unknown: dict[str, Any]) -> None:
    """Refuse unknown arguments: a misspelt media argument that is ignored would be an image that only one side sees."""
    if unknown:
        raise TypeError(f"unknown arguments: {', '.join(sorted(unknown))}")
