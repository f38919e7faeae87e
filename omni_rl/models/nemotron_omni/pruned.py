"""Rebuilds the sequence that the engine embeds for pruned videos, once their features are known.

A prompt's ids hold all slots of a pruned video in its first tubelet; embedded, each tubelet's kept features stand
behind its own time stamp. Shapes: T packed tokens, F tubelets of N tokens, K kept tokens of a video.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from omni_rl.errors import PromptError
from omni_rl.models.nemotron_omni.evs import retention_mask
from omni_rl.models.packed import PackedMedia


@dataclass(frozen=True)
class PrunedPack:
    """The pack after pruning: `ids` int64 [T] as they are embedded; `media` and `features` with only what is kept, at
    its real positions.

    `kept` has for each item bool [F, N], the tokens that the features themselves choose to keep, or None for an item
    that is not pruned.
    """

    ids: torch.Tensor
    media: Sequence[PackedMedia]
    features: Sequence[torch.Tensor]
    kept: tuple[torch.Tensor | None, ...]


def place(ids: torch.Tensor, media: Sequence[PackedMedia], features: Sequence[torch.Tensor]) -> PrunedPack:
    """Prune the `features` [F * N, hidden] of every item that is to be pruned; all else stays as it is.

    Where an item says which tokens the engine kept, these are kept here; where not, the features decide. Only kept
    features get a gradient. Raises `PromptError` that names the sample where the prompt's text and the video differ.
    """
    if all(item.pruning is None for item in media):
        return PrunedPack(ids, media, features, (None,) * len(media))
    ids = ids.clone()
    new_media, new_features = list(media), list(features)
    chosen: list[torch.Tensor | None] = [None] * len(media)
    for index, (item, rows) in enumerate(zip(media, features, strict=True)):
        pruning = item.pruning
        if pruning is None:
            continue
        tubelets = rows.view(len(pruning.text_before), -1, rows.shape[-1])
        own = retention_mask(tubelets.detach(), pruning.rate)
        kept = own if pruning.kept is None else pruning.kept.to(own.device)
        _check(item, own, kept)
        positions = _move(ids, item, kept)
        new_media[index] = replace(item, positions=positions)
        new_features[index] = tubelets[kept]
        chosen[index] = own
    return PrunedPack(ids, new_media, new_features, tuple(chosen))


def _move(ids: torch.Tensor, item: PackedMedia, kept: torch.Tensor) -> torch.Tensor:
    """Put the span's text and slots in `ids` in the order in which they are embedded; return the slots' positions
    [K]."""
    assert item.pruning is not None
    start, end = item.pruning.span
    slots = item.positions.to(ids.device) - start
    text = torch.ones(end - start, dtype=torch.bool, device=ids.device)
    text[slots] = False
    before = item.pruning.text_before.to(ids.device)
    # In front of a kept token stand the text up to its tubelet and the tokens kept before it.
    moved = before[kept.nonzero()[:, 0]] + torch.arange(len(slots), device=ids.device)
    new_text = torch.ones_like(text)
    new_text[moved] = False
    span = ids[start:end].clone()
    ids[start:end][new_text] = span[text]
    ids[start:end][moved] = span[slots]
    return moved + start


def _check(item: PackedMedia, own: torch.Tensor, kept: torch.Tensor) -> None:
    if own.shape != kept.shape:
        raise PromptError(
            f"sample {item.sample}: the engine kept tokens of {list(kept.shape)} (tubelets, tokens each), the video "
            f"has {list(own.shape)}; score a rollout with its own prompt"
        )
    if int(kept.sum()) != len(item.positions):
        raise PromptError(
            f"sample {item.sample}: video has {len(item.positions)} placeholder tokens and {int(kept.sum())} kept "
            "features; render the prompt and its media together, once"
        )
