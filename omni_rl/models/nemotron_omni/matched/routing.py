"""The router with its choices in the engine's order, in which their weights are summed up."""

import torch
from torch.nn import functional as F

from omni_rl.models.nemotron_omni.language.moe import Router

# A multiple of what vector instructions take at a time, unrolled: the end of a tensor that is none goes without them.
_LANES = 64


def rows_missing(rows: int) -> int:
    """How many more rows it takes until vector instructions compute all of them."""
    return -rows % _LANES


class MatchedRouter(Router):
    """The same experts and margins; `experts` are in no order, as the engine asks for none."""

    def _choose(self, biased: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        limited = self._limit(biased)
        _, margins = self._best(limited)
        return limited.topk(self.top_k, dim=-1, sorted=False).indices, margins


class InvariantRouter(MatchedRouter):
    """A row's scores have the same bits in a tensor of any size, of one to three rows too."""

    def _scores(self, rows: torch.Tensor) -> torch.Tensor:
        return super()._scores(F.pad(rows, (0, 0, 0, rows_missing(len(rows)))))[: len(rows)]
