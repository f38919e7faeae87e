"""The router with its choices in the engine's order, in which their weights are summed up."""

import torch

from omni_rl.models.nemotron_omni.language.moe import Router


class MatchedRouter(Router):
    """The same experts and margins; `experts` are in no order, as the engine asks for none."""

    def _choose(self, biased: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        limited = self._limit(biased)
        _, margins = self._best(limited)
        return limited.topk(self.top_k, dim=-1, sorted=False).indices, margins
