"""Puts media features in place of the placeholder ids of a padded batch, when no spans are known.

Features go to a modality's placeholder ids in row-major order. An item (image, tile, tubelet, clip) belongs to one
sample, so the counts are checked sample by sample.
"""

from collections.abc import Sequence

import torch

from omni_rl.errors import PromptError


def fill_slots(
    embeds: torch.Tensor, input_ids: torch.Tensor, placeholder: int, modality: str, items: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return `embeds` [B, L, hidden] with `items` ([N, hidden] each, in order) where `input_ids` [B, L] is
    `placeholder`.

    Raises `PromptError` (a ValueError) that names sample, modality and both counts where they differ.
    """
    slots = input_ids == placeholder
    remaining = list(items)
    for sample, wanted in enumerate(slots.sum(1).tolist()):
        found = 0
        while remaining and found < wanted:
            found += len(remaining.pop(0))
        if found != wanted:
            raise _mismatch(sample, modality, wanted, found)
    if remaining:
        last = len(slots) - 1
        wanted = int(slots[last].sum())
        raise _mismatch(last, modality, wanted, wanted + sum(len(rows) for rows in remaining))
    if not len(items):
        return embeds
    return embeds.index_put((slots,), torch.cat(list(items)).to(embeds.dtype))


def _mismatch(sample: int, modality: str, wanted: int, found: int) -> PromptError:
    return PromptError(
        f"sample {sample}: {modality} has {wanted} placeholder tokens and {found} features; render the prompt and "
        "its media together, once"
    )
