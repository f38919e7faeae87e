"""Packs rollouts of different lengths back to back."""

from collections.abc import Sequence

import torch

from omni_rl.media.types import MediaItem
from omni_rl.models.packed import PackedMedia, PackedPruning, PackedSequences
from omni_rl.rollout.types import Rollout
from omni_rl.train.plan import sequence_length


def pack(rollouts: Sequence[Rollout], *, replay: bool = False) -> PackedSequences:
    """Pack prompt and answer of every rollout back to back, with the answers' tokens to be scored. With `replay`, the
    experts are the ones that the engine used.

    Without rollouts, return the smallest sequence that can be scored, for a rank that must run along with the others.
    Its score counts for nothing.
    """
    if not rollouts:
        return PackedSequences(
            ids=torch.zeros(2, dtype=torch.int64),
            cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
            score_mask=torch.tensor([False, True]),
        )
    ids: list[torch.Tensor] = []
    score_mask: list[torch.Tensor] = []
    media: list[PackedMedia] = []
    starts = [0]
    for rollout in rollouts:
        prompt = rollout.prompt
        # Copied: arrays that crossed a process may be read-only.
        ids += [torch.tensor(prompt.ids), torch.tensor(rollout.ids)]
        score_mask += [torch.zeros(len(prompt.ids), dtype=torch.bool), torch.ones(len(rollout.ids), dtype=torch.bool)]
        media += [_placed(rollout, index, item, starts[-1]) for index, item in enumerate(prompt.items)]
        starts.append(starts[-1] + sequence_length(rollout))
    return PackedSequences(
        ids=torch.cat(ids),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        score_mask=torch.cat(score_mask),
        media=tuple(media),
        experts=torch.cat([_routed(rollout) for rollout in rollouts]) if replay else None,
    )


def _routed(rollout: Rollout) -> torch.Tensor:
    """Return the engine's choices of experts, int16 [P + T, L, K]. The last token's row is -1, so that the model
    chooses by itself: the engine never computes that token."""
    assert rollout.experts is not None, "the driver lets no rollout without choices pass"
    _, layers, chosen = rollout.experts.shape
    return torch.cat([torch.tensor(rollout.experts), torch.full((1, layers, chosen), -1, dtype=torch.int16)])


def _placed(rollout: Rollout, index: int, item: MediaItem, start: int) -> PackedMedia:
    """Return media item `index` of a rollout whose prompt begins at packed position `start`."""
    pruning = None
    if item.pruning is not None:
        # What the engine kept is part of what it conditioned the answer on: near ties may fall the other way here.
        mask = rollout.kept[index] if rollout.kept else None
        first = start + item.offset
        pruning = PackedPruning(
            rate=item.pruning.rate,
            span=(first, first + item.length),
            text_before=torch.tensor(item.pruning.text_before),
            kept=None if mask is None else torch.tensor(mask),
        )
    return PackedMedia(item.modality, torch.tensor(item.positions) + start, item.tensors, rollout.prompt.id, pruning)


def temperatures(rollouts: Sequence[Rollout]) -> torch.Tensor:
    """Return the sampling temperature of each scored token of `pack(rollouts)`, float32 [scored tokens]."""
    if not rollouts:
        return torch.ones(1)
    return torch.cat([torch.full((len(rollout.ids),), rollout.temperature) for rollout in rollouts])
