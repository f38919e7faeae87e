"""Routes with the choices in the engine's order, in which their weights are summed up."""

import torch
from torch.nn import functional as F

from omni_rl.models.nemotron_omni.language.moe import Router

# A multiple of what unrolled vector instructions take at a time; the rest of a tensor is computed without them.
_LANES = 64


def rows_missing(rows: int) -> int:
    """Return how many more rows it takes until vector instructions compute all of them."""
    return -rows % _LANES


class MatchedRouter(Router):
    """A router with the same experts and margins; `experts` are in no order, as the engine asks for none."""

    def _choose(self, biased: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        limited = self._limit(biased)
        _, margins = self._best(limited)
        return limited.topk(self.top_k, dim=-1, sorted=False).indices, margins


class InvariantRouter(MatchedRouter):
    """A router that gives a row's scores the same bits in a tensor of any size, of one to three rows too."""

    def _scores(self, rows: torch.Tensor) -> torch.Tensor:
        return super()._scores(F.pad(rows, (0, 0, 0, rows_missing(len(rows)))))[: len(rows)]
