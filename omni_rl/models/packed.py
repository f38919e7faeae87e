"""Holds sequences of different lengths, back to back without padding, with the media that belong to them.

Shapes: T tokens of all sequences together, S sequences, N features of one media item, L MoE layers, K experts.
"""

from dataclasses import dataclass, replace

import torch

from omni_rl.kinds import Modality


@dataclass(frozen=True)
class PackedPruning:
    """How a video of F tubelets of N tokens is pruned at `rate`.

    `span` are the packed positions of its text and slots, start and end. `text_before` int64 [F] is how many of the
    span's text tokens precede each tubelet's features. `kept` bool [F, N] marks the tokens that stay; None: the
    features decide.
    """

    rate: float
    span: tuple[int, int]
    text_before: torch.Tensor
    kept: torch.Tensor | None = None

    def to(self, device: torch.device) -> "PackedPruning":
        kept = None if self.kept is None else self.kept.to(device)
        return replace(self, text_before=self.text_before.to(device), kept=kept)


@dataclass(frozen=True)
class PackedMedia:
    """One media item. `positions` int64 [N] are the packed positions that take its features, in feature order.

    `tensors` are the processor's outputs for the item, by vLLM's names: image `pixel_values_flat` [3, H, W]; video
    `pixel_values_flat_video` [F, 3, H, W]; audio `input_audio_features` [clips, frames, mel] and
    `feature_attention_mask` [clips, frames]. `sample` names the sequence in errors. `pruning` is that of a video, whose
    `positions` are then the prompt's slots, as many as features stay.
    """

    modality: Modality
    positions: torch.Tensor
    tensors: dict[str, torch.Tensor]
    sample: str
    pruning: PackedPruning | None = None

    def to(self, device: torch.device) -> "PackedMedia":
        return replace(
            self,
            positions=self.positions.to(device),
            tensors={name: tensor.to(device) for name, tensor in self.tensors.items()},
            pruning=None if self.pruning is None else self.pruning.to(device),
        )


@dataclass(frozen=True)
class PackedSequences:
    """Packed token ids: `ids` int64 [T]; `cu_seqlens` int32 [S + 1], starts of the sequences and the end, as
    flash-attention has it.

    `score_mask` bool [T] marks positions t whose token is to be scored, given the tokens before it in its sequence; a
    sequence's first position is never marked. `experts` int16 [T, L, K] are what MoE layers use in place of their own
    choice, -1 in rows that are free; None: all are.
    """

    ids: torch.Tensor
    cu_seqlens: torch.Tensor
    score_mask: torch.Tensor
    media: tuple[PackedMedia, ...] = ()
    experts: torch.Tensor | None = None

    def to(self, device: torch.device) -> "PackedSequences":
        """Return the same sequences on `device`; tensors that are there already stay the same objects."""
        return PackedSequences(
            ids=self.ids.to(device),
            cu_seqlens=self.cu_seqlens.to(device),
            score_mask=self.score_mask.to(device),
            media=tuple(media.to(device) for media in self.media),
            experts=None if self.experts is None else self.experts.to(device),
        )


@dataclass(frozen=True)
class PackedScores:
    """The scores: `logprobs` float32 [score_mask.sum()], differentiable, in packed order.

    `experts` int16 [T, L, K] and `margins` float32 [T, L] (gap between the last chosen and the first refused biased
    score), or None for a model without MoE layers. `kept` has an entry a media item: bool [F, N], the tokens of a
    pruned video that the features choose to keep (also where others had to be kept), or None. `hidden`
    [score_mask.sum(), hidden], differentiable, is the last hidden state in which each scored token is chosen.
    """

    logprobs: torch.Tensor
    experts: torch.Tensor | None
    margins: torch.Tensor | None
    kept: tuple[torch.Tensor | None, ...] = ()
    hidden: torch.Tensor | None = None
