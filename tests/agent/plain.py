"""A vLLM on the CPU that computes with the weights as they were loaded, as one on a GPU does; its own packs them."""

from typing import Any

import torch
from torch import nn


def plain_weights() -> None:
    """Have this process's vLLM keep and use the weights of linears and experts as they were loaded."""
    import vllm.model_executor.layers.utils as layers
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = nn.functional.linear

    layers.dispatch_cpu_unquantized_gemm = plain
    experts: Any = cpu_moe.CPUUnquantizedExperts
    experts.weights_as_loaded = True
    experts.process_weights_after_loading = lambda self, layer: None
    experts.apply = _apply


def _apply(
    self: Any,
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *_: object,
    **__: object,
) -> None:
    """Gated experts: `w1` [E, 2 I, H], `w2` [E, H, I], of which a token takes those that `topk_ids` says."""
    found = torch.zeros(hidden_states.shape, dtype=torch.float32)
    for expert in torch.unique(topk_ids).tolist():
        token, slot = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = nn.functional.linear(hidden_states[token], w1[expert]).chunk(2, -1)
        down = nn.functional.linear(nn.functional.silu(gate) * up, w2[expert]).float()
        found.index_add_(0, token, down * topk_weights[token, slot, None].float())
    output.copy_(found)
