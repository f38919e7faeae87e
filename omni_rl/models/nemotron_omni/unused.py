"""Gives zero gradients to what a batch did not use, so that every rank reduces the same parameters.

Under FSDP the towers are in the root unit; a rank whose batch has no image would reduce fewer gradients than the
others, and the collective would abort or hang. (FSDP's own option for unused parameters fails with gradient
accumulation in mixed precision.)
"""

from collections.abc import Iterable
from typing import Any

import torch

from omni_rl.models.nemotron_omni.parts import NemotronOmniParts


def zero_gradients_of_unused(model: NemotronOmniParts, embeds: torch.Tensor, modalities: Iterable[str]) -> torch.Tensor:
    """Return `embeds`, in whose backward the tower parameters that none of `modalities` uses get zero gradients."""
    if not torch.is_grad_enabled():
        return embeds
    present = set(modalities)
    vision = model.vision_model
    unused: list[torch.nn.Parameter] = []
    if not present & {"image", "video"}:
        unused += [*vision.parameters(), *model.vision_projector.parameters()]
    else:
        if "image" not in present:
            unused += vision.embeddings.patch_projection.parameters()
        if "video" not in present and vision.embeddings.video_patch_projection is not None:
            unused += vision.embeddings.video_patch_projection.parameters()
    if "audio" not in present and model.sound_encoder is not None and model.sound_projection is not None:
        unused += [*model.sound_encoder.parameters(), *model.sound_projection.parameters()]
    trained = [parameter for parameter in unused if parameter.requires_grad]
    if not trained:
        return embeds
    touched: torch.Tensor = _Touch.apply(embeds, *trained)  # type: ignore[no-untyped-call]
    return touched


class _Touch(torch.autograd.Function):
    """Gives parameters zero gradients. Adding 0 · parameter would do the same, but turn an infinite weight into NaN."""

    @staticmethod
    def forward(ctx: Any, embeds: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*parameters)
        return embeds.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return grad, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
