"""Gives a model that was built without memory its memory."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration


def materialise(model: "NemotronOmniForConditionalGeneration", device: torch.device) -> None:
    """Give a model on the meta device memory on `device`, for weights to be filled; what is no weight is computed."""
    model.to_empty(device=device)
    indices = torch.tensor(model.vision_model.config.summary_idxs, dtype=torch.int64, device=device)
    model.vision_model.summary_idxs = indices
