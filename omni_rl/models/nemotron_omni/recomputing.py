"""Defines layers that store their inputs alone, and are computed once more in backward (activation checkpointing)."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputable(nn.Module):
    """A layer that is recomputed in backward where `recomputed` is set, in train and in eval.

    transformers' own layers do so in train alone, and towers stay in eval.
    """

    recomputed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.recomputed and torch.is_grad_enabled():
            # The generator's state is kept: an adapter in the layer may have dropout.
            return checkpoint(super().__call__, *args, use_reentrant=False, **kwargs)
        return super().__call__(*args, **kwargs)


def set_recomputed(stack: nn.ModuleList, every: int | None) -> None:
    """Recompute each `every`-th layer of a stack, the first among them; None: no layer."""
    for index, layer in enumerate(stack):
        assert isinstance(layer, Recomputable)
        layer.recomputed = every is not None and index % every == 0
