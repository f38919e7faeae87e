"""Allocates the memory of a model that was built without."""

import torch

from omni_rl.models.nemotron_omni.parts import NemotronOmniParts


def materialise(model: NemotronOmniParts, device: torch.device) -> None:
    """Give a model on the meta device memory on `device`, for weights to be filled; buffers that are no weights are
    computed."""
    model.to_empty(device=device)
    indices = torch.tensor(model.vision_model.config.summary_idxs, dtype=torch.int64, device=device)
    model.vision_model.summary_idxs = indices
