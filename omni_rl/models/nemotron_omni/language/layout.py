"""Holds where sequences begin and end in a packed batch, computed once a forward for every layer.

Shapes: T packed tokens, S sequences.
"""

from dataclasses import dataclass

import torch

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.context_parallel import Context


@dataclass(frozen=True)
class PackedLayout:
    """The `lengths` of the S sequences; for each token its `sequence` and its `position` there, int64 [T].

    With a `context` the layout is that of the whole sequences, while a rank's tensors hold its own tokens only.
    """

    lengths: tuple[int, ...]
    sequence: torch.Tensor
    position: torch.Tensor
    context: Context | None = None

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor) -> "PackedLayout":
        """Return the layout of `cu_seqlens` int [S + 1], starts of the sequences and the end."""
        starts = cu_seqlens.long()
        counts = starts.diff()
        sequence = torch.repeat_interleave(torch.arange(len(counts), device=starts.device), counts)
        position = torch.arange(len(sequence), device=starts.device) - starts[sequence]
        return cls(tuple(counts.tolist()), sequence, position)

    @classmethod
    def sharded(cls, context: Context, device: torch.device) -> "PackedLayout":
        """Return the layout of a context-parallel batch. Raises `ConfigError` if the sequences cannot be cut in 2n
        equal chunks."""
        if context.length % (2 * context.ranks):
            raise ConfigError(
                f"sequences of {context.length} tokens cannot be cut in {2 * context.ranks} equal chunks for "
                f"{context.ranks} ranks; pad them on the right"
            )
        whole = cls.of(torch.arange(context.batch + 1, device=device) * context.length)
        return cls(whole.lengths, whole.sequence, whole.position, context)
