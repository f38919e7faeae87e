"""Where sequences begin and end in a packed batch, computed once a forward for every layer.

Shapes: T packed tokens, S sequences.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedLayout:
    """`lengths` of the S sequences; for each token its `sequence` and its `position` there, int64 [T]."""

    lengths: tuple[int, ...]
    sequence: torch.Tensor
    position: torch.Tensor

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor) -> "PackedLayout":
        """From `cu_seqlens` int [S + 1], starts of the sequences and the end."""
        starts = cu_seqlens.long()
        counts = starts.diff()
        sequence = torch.repeat_interleave(torch.arange(len(counts), device=starts.device), counts)
        position = torch.arange(len(sequence), device=starts.device) - starts[sequence]
        return cls(tuple(counts.tolist()), sequence, position)
