"""Where a process stands among Megatron's ranks, as Miles and slime say: which have copies, and which have pieces."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omni_rl.watch.place import PostingRank


@dataclass(frozen=True)
class MegatronPlace:
    """Where this process stands among Megatron's ranks.

    `part` is which of the step's parts this process has. `copy`: another process of its tensor-parallel group has the
    same answers, and posts them. `pieces`: its answers are cut, and other processes have the other pieces.
    """

    part: PostingRank
    copy: bool
    pieces: bool
    masks: str
    """The module that knows which tokens of an answer are on this rank."""

    @classmethod
    def of(cls, parallel: Any | None) -> "MegatronPlace":
        """Return the place from Miles's `ParallelState`; or, where the framework hands over none, from Megatron's own
        state."""
        if parallel is not None:
            inner, outer = parallel.intra_dp_cp, parallel.indep_dp
            part = PostingRank(outer.rank * inner.size + inner.rank, outer.size * inner.size)
            masks = "miles.backends.training_utils.cp_utils"
            return cls(part, parallel.tp.rank > 0, parallel.cp.size > 1, masks)
        from megatron.core import mpu

        rank = mpu.get_data_parallel_rank(with_context_parallel=True)
        part = PostingRank(rank, mpu.get_data_parallel_world_size(with_context_parallel=True))
        copy, pieces = mpu.get_tensor_model_parallel_rank() > 0, mpu.get_context_parallel_world_size() > 1
        return cls(part, copy, pieces, "slime.backends.megatron_utils.cp_utils")

    def local_masks(self, args: Any, masks: Sequence[Any], others: Mapping[str, Any]) -> Sequence[Any]:
        """Return the masks of those tokens that this process has logprobs of."""
        if not self.pieces:
            return masks
        known = importlib.import_module(self.masks)
        lengths = others["total_lengths"], others["response_lengths"]
        if hasattr(known, "get_local_response_loss_masks"):
            local: Sequence[Any] = known.get_local_response_loss_masks(
                *lengths, masks, args.qkv_format, others.get("max_seq_lens")
            )
            return local
        return [_cut(known, mask, *each) for mask, *each in zip(masks, *lengths, strict=True)]


def _cut(known: Any, mask: Any, total: int, response: int) -> Any:
    """Cut a mask to slime's pieces, which are two of each answer, from its start and from its end."""
    import torch

    prompt = total - response
    *_, pieces = known.get_logits_and_tokens_offset_with_cp(total, response)
    return torch.cat([mask[first - prompt : last - prompt] for first, last in pieces])
