"""Puts media features where the prompt holds places for them, and refuses counts that differ."""

from collections.abc import Sequence

import torch

from omni_rl.errors import PromptError
from omni_rl.models.packed import PackedMedia


def scatter_features(
    embeds: torch.Tensor, media: Sequence[PackedMedia], features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return `embeds` [T, hidden] with every item's `features` [N, hidden] at its positions; replaced rows get no
    gradient.

    Raises `PromptError` (a ValueError) that names sample, modality and both counts when an item's positions and
    features differ in number, or its positions lie outside the batch.
    """
    for item, rows in zip(media, features, strict=True):
        if len(item.positions) != len(rows):
            raise PromptError(
                f"sample {item.sample}: {item.modality} has {len(item.positions)} placeholder tokens and {len(rows)} "
                "features; render the prompt and its media together, once"
            )
        if len(item.positions) and not 0 <= int(item.positions.min()) <= int(item.positions.max()) < len(embeds):
            raise PromptError(f"sample {item.sample}: {item.modality} has positions outside of {len(embeds)} tokens")
    positions = torch.cat([item.positions.to(embeds.device) for item in media])
    if len(torch.unique(positions)) != len(positions):
        raise PromptError(_overlap(media))
    return embeds.index_copy(0, positions, torch.cat(list(features)).to(embeds.dtype))


def _overlap(media: Sequence[PackedMedia]) -> str:
    taken: dict[int, PackedMedia] = {}
    for item in media:
        for position in item.positions.tolist():
            if position in taken:
                other = taken[position]
                return (
                    f"position {position} is claimed twice, by {other.modality} of sample {other.sample} and by "
                    f"{item.modality} of sample {item.sample}; each place holds one feature"
                )
            taken[position] = item
    raise AssertionError("no two positions are equal")
