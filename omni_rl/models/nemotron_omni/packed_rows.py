"""Finds the sequences of rows that hold several, in the forms that other trainers use; unnoticed, they would leak into
each other.

Shapes: B rows of up to L tokens.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn import functional as F

from omni_rl.errors import PromptError

_SPELLINGS: Mapping[str, str] = {
    "cu_seqlens": "cu_seqlens",
    "cu_seq_lens_q": "cu_seqlens",
    "cu_seq_lens_k": "cu_seqlens",
    "seq_idx": "seq_idx",
}
"""Our names, by the names under which collators pass things on (transformers' for flash-attention, and Mamba's)."""
_DERIVED = ("max_length_q", "max_length_k", "max_seqlen")


@dataclass(frozen=True)
class RowPacking:
    """Where a row's sequences begin, in any of three forms.

    `position_ids` int [B, L] (or one row for all) begin at 0 with every sequence; `cu_seqlens` int [S + 1] has the
    starts of the sequences in B·L tokens and the end; `seq_idx` int [B, L] has each token's sequence.
    """

    position_ids: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    seq_idx: torch.Tensor | None = None

    @classmethod
    def taken_from(cls, arguments: MutableMapping[str, Any], position_ids: torch.Tensor | None) -> "RowPacking":
        """Take the packing out of a forward's other arguments. Raises `PromptError` if two arguments of one meaning
        differ."""
        found: dict[str, torch.Tensor] = {}
        for spelling, name in _SPELLINGS.items():
            value = arguments.pop(spelling, None)
            if value is None:
                continue
            if name in found and not torch.equal(found[name], value):
                raise PromptError(f"{spelling} differs from another {name}; queries and keys are of the same sequences")
            found[name] = value
        for name in _DERIVED:
            arguments.pop(name, None)
        return cls(position_ids, **found)

    @property
    def given(self) -> bool:
        """Whether any of the three forms is given."""
        return any(getattr(self, each.name) is not None for each in fields(self))


def starts(marks: torch.Tensor, packing: RowPacking) -> torch.Tensor:
    """Return where sequences begin, bool [B, L], by `marks` int64 [B, L] (0 padding, else the number in the row) and
    `packing`; every row begins one.

    Raises `PromptError` that names the sample where sequences are not in one piece.
    """
    found = _changes(marks, "attention_mask", marks > 0)
    if packing.position_ids is not None:
        found |= _restarts(packing.position_ids.to(marks.device), marks > 0)
    if packing.seq_idx is not None:
        numbers = _fitting(packing.seq_idx.to(marks.device), marks.shape, "seq_idx")
        found |= _changes(numbers, "seq_idx", marks > 0)
    if packing.cu_seqlens is not None:
        found |= _cut(packing.cu_seqlens.to(marks.device), marks)
    return found & (marks > 0)


def _changes(numbers: torch.Tensor, name: str, valid: torch.Tensor) -> torch.Tensor:
    step = F.pad(numbers.diff(dim=1), (1, 0), value=1)
    for sample in ((step < 0) & valid).any(1).nonzero().flatten().tolist():
        raise PromptError(f"sample {sample}: {name} goes back to an earlier sequence; number them in order")
    return step != 0


def _restarts(positions: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    positions = _fitting(positions, valid.shape, "position_ids")
    restarts = positions == 0
    follows = F.pad(positions.diff(dim=1) == 1, (1, 0), value=False)
    for sample, at in (valid & ~restarts & ~follows).nonzero().tolist():
        raise PromptError(
            f"sample {sample}: position_ids is {int(positions[sample, at])} at token {at}; positions count from 0 in "
            "every sequence (there is no cache, and no rotary embedding that other positions could mean)"
        )
    return restarts


def _cut(cu_seqlens: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    bounds = cu_seqlens.flatten().long()
    if not (marks > 0).all():
        raise PromptError("cu_seqlens are of a batch without padding; leave the attention_mask out")
    if bounds[0] != 0 or bounds[-1] != marks.numel() or (bounds.diff() < 0).any():
        raise PromptError(
            f"cu_seqlens go from {int(bounds[0])} to {int(bounds[-1])}, the tokens from 0 to {marks.numel()}"
        )
    found = torch.zeros_like(marks, dtype=torch.bool)
    found.view(-1)[bounds[:-1][bounds[:-1] < marks.numel()]] = True
    return found


def _fitting(numbers: torch.Tensor, shape: torch.Size, name: str) -> torch.Tensor:
    """Return [B, L] of `numbers` that have this shape, or are one row for all samples."""
    if numbers.shape[-1:] != shape[-1:] or numbers.numel() not in (shape.numel(), shape[-1]):
        raise PromptError(f"{name} has the shape {list(numbers.shape)}, the tokens have {list(shape)}")
    return numbers.reshape(-1, shape[-1]).expand(shape).long()
