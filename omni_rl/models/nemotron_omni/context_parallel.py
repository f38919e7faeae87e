"""Spreads long sequences over several ranks: each holds two chunks of every sequence, and all hold all weights.

Rank r of n owns chunks r and 2n-1-r of 2n equal chunks, so that causal attention costs every rank the same. Attention
gathers keys and values; Mamba gathers the whole sequence and computes a share of the heads.

Shapes: B sequences of L tokens, l = L / n of them on a rank; T = B·L packed tokens.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Context:
    """One rank's place in a context-parallel batch of `batch` sequences of `length` tokens: `ranks` are in `group`."""

    group: dist.ProcessGroup
    rank: int
    ranks: int
    batch: int
    length: int

    def shard(self, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's chunks, back to back: [B, L, ...] to [B, l, ...]."""
        chunks = whole.chunk(2 * self.ranks, dim=1)
        return torch.cat([chunks[self.rank], chunks[2 * self.ranks - 1 - self.rank]], dim=1)

    def gather(self, local: torch.Tensor) -> torch.Tensor:
        """Return every rank's [B·l, ...] as whole sequences in order, [T, ...]; the gradient is summed over the
        ranks."""
        chunk = self.length // (2 * self.ranks)
        by_rank: torch.Tensor = _AllGather.apply(local, self.group)  # type: ignore[no-untyped-call]
        pairs = by_rank.view(self.ranks, self.batch, 2, chunk, *local.shape[1:])
        front, back = pairs[:, :, 0], pairs[:, :, 1].flip(0)
        ordered = torch.cat([front, back]).transpose(0, 1)  # B, 2n, chunk, ...
        return ordered.reshape(self.batch * self.length, *local.shape[1:])

    def scatter(self, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's tokens of packed whole sequences: [T, ...] to [B·l, ...]."""
        return self.shard(whole.view(self.batch, self.length, *whole.shape[1:])).flatten(0, 1)

    def gather_features(self, local: torch.Tensor) -> torch.Tensor:
        """Return every rank's share of the features, [T, f], side by side: [T, n·f]."""
        by_rank: torch.Tensor = _AllGather.apply(local, self.group)  # type: ignore[no-untyped-call]
        return by_rank.transpose(0, 1).flatten(1)

    def chunk_spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the start and end in the sequence of this rank's two chunks."""
        chunk = self.length // (2 * self.ranks)
        first, second = self.rank * chunk, (2 * self.ranks - 1 - self.rank) * chunk
        return (first, first + chunk), (second, second + chunk)


class _AllGather(torch.autograd.Function):
    """Gathers [...] of every rank to [n, ...]. Every rank's loss depends on every rank's input, so gradients are
    summed."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, local: torch.Tensor, group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        own = local.contiguous()
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own, group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        group = ctx.group  # type: ignore[attr-defined]
        total = grad.contiguous()
        dist.all_reduce(total, group=group)
        return total[dist.get_rank(group)], None
