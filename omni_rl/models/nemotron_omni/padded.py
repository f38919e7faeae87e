"""Turns padded batches into packed sequences and back.

Shapes: B samples of up to L tokens; T tokens that are no padding; S sequences, one or more a sample.
"""

from dataclasses import dataclass

import torch

from omni_rl.errors import PromptError
from omni_rl.models.nemotron_omni import packed_rows
from omni_rl.models.nemotron_omni.packed_rows import RowPacking


@dataclass(frozen=True)
class PaddedBatch:
    """Where a padded batch's tokens are: `valid` bool [B, L]; `cu_seqlens` int32 [S + 1] over its valid tokens."""

    valid: torch.Tensor
    cu_seqlens: torch.Tensor

    @classmethod
    def of(
        cls,
        shape: torch.Size,
        attention_mask: torch.Tensor | None,
        device: torch.device,
        packing: RowPacking | None = None,
    ) -> "PaddedBatch":
        """Describe a batch of `shape` (B, L), with `attention_mask` [B, L] (ones, then zeros to the right) or without
        padding.

        A mask of whole numbers 1, 2, ... and `packing` say where a row holds several sequences; these restart. Raises
        `PromptError` (a ValueError) for a mask of another shape, padding on the left, holes, no tokens at all, and
        packing that cannot be.
        """
        if attention_mask is None:
            marks = torch.ones(shape, dtype=torch.int64, device=device)
        else:
            marks = _marks(attention_mask.to(device), shape)
        valid = marks > 0
        if not valid.any():
            raise PromptError(f"the batch has no tokens: its shape is {list(shape)}, and all of it is padding")
        starts = packed_rows.starts(marks, packing or RowPacking())[valid].nonzero().squeeze(1)
        return cls(valid, torch.cat([starts, starts.new_tensor([int(valid.sum())])]).int())

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """Return [T, ...] of values [B, L, ...]."""
        return values[self.valid]

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Return [B, L, ...] of values [T, ...], with zeros in the padding."""
        padded = values.new_zeros(*self.valid.shape, *values.shape[1:])
        return padded.index_put((self.valid,), values)


def _marks(mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return int64 [B, L]: 0 for padding, else the number of the sequence in its row."""
    if mask.shape != shape:
        raise PromptError(
            f"attention_mask has the shape {list(mask.shape)}, the tokens have {list(shape)}; a mask of pairs of "
            "tokens is not supported: number the sequences of a row 1, 2, ... in its mask"
        )
    marks = mask.long()
    if (marks < 0).any() or not torch.equal(marks.to(mask.dtype), mask):
        raise PromptError("attention_mask holds other values than 0, 1, 2, ...; it is no mask that is added to scores")
    for sample, row in enumerate(marks > 0):
        length = int(row.sum())
        if length and not row[0]:
            raise PromptError(f"sample {sample} is padded on the left; pad on the right")
        if not row[:length].all():
            raise PromptError(
                f"sample {sample} has holes in its attention_mask; only padding on the right is supported"
            )
    return marks
