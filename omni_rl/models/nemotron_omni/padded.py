"""Padded batches as packed sequences and back.

Shapes: B samples of up to L tokens; T tokens that are no padding.
"""

from dataclasses import dataclass

import torch

from omni_rl.errors import PromptError


@dataclass(frozen=True)
class PaddedBatch:
    """Where a padded batch's tokens are: `valid` bool [B, L]; `cu_seqlens` int32 [B + 1] over its valid tokens."""

    valid: torch.Tensor
    cu_seqlens: torch.Tensor

    @classmethod
    def of(cls, shape: torch.Size, attention_mask: torch.Tensor | None, device: torch.device) -> "PaddedBatch":
        """Of `shape` (B, L), with `attention_mask` [B, L] (ones, then zeros to the right) or without padding.

        Raises `PromptError` (a ValueError) for a mask of another shape, padding on the left, or holes.
        """
        if attention_mask is None:
            valid = torch.ones(shape, dtype=torch.bool, device=device)
        else:
            valid = attention_mask.to(device).bool()
            _check(valid, shape)
        lengths = valid.sum(1)
        return cls(valid, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int())

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """[B, L, ...] to [T, ...]."""
        return values[self.valid]

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """[T, ...] to [B, L, ...] with zeros in the padding."""
        padded = values.new_zeros(*self.valid.shape, *values.shape[1:])
        return padded.index_put((self.valid,), values)


def _check(valid: torch.Tensor, shape: torch.Size) -> None:
    if valid.shape != shape:
        raise PromptError(f"attention_mask has the shape {list(valid.shape)}, the tokens have {list(shape)}")
    for sample, row in enumerate(valid):
        length = int(row.sum())
        if length and not row[0]:
            raise PromptError(f"sample {sample} is padded on the left; pad on the right")
        if not row[:length].all():
            raise PromptError(
                f"sample {sample} has holes in its attention_mask; only padding on the right is supported"
            )
