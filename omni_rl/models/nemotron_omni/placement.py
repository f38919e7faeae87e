"""Which dtype and device a model's tensors have."""

from typing import TYPE_CHECKING

import torch

from omni_rl.models.nemotron_omni.language.mamba import StateDecay
from omni_rl.models.nemotron_omni.language.moe import Router

if TYPE_CHECKING:
    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration


def cast(model: "NemotronOmniForConditionalGeneration", dtype: torch.dtype) -> None:
    """All floating-point tensors to `dtype`, but those that every engine holds in float32: A and the router's bias."""
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, StateDecay):
            module.float()
        elif isinstance(module, Router):
            module.e_score_correction_bias = module.e_score_correction_bias.float()


def materialise(model: "NemotronOmniForConditionalGeneration", device: torch.device) -> None:
    """Give a model on the meta device memory on `device`, for weights to be filled; what is no weight is computed."""
    model.to_empty(device=device)
    indices = torch.tensor(model.vision_model.config.summary_idxs, dtype=torch.int64, device=device)
    model.vision_model.summary_idxs = indices
