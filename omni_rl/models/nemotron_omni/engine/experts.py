"""Non-gated relu-squared experts on CPU, which vLLM 0.32 has for CUDA, ROCm and XPU only.

Two things stand in the way there: a check in `FusedMoEConfig`, and the choice of a kernel. The kernel comes through
vLLM's registry of out-of-tree operators; the check has no seam and is wrapped.
"""

import torch
from torch.nn.functional import linear
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.platforms import current_platform


def relu2_experts(
    hidden: torch.Tensor, up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """Sum over a token's experts of weight * down(relu(up(x))^2), each expert once for all of its tokens.

    `hidden` [T, H]; `up` [E, F, H]; `down` [E, H, F]; `weights` float32 [T, K]; `chosen` int [T, K]. Returns float32
    [T, H]: products in the model's dtype, the sum in float32 in the order of the experts' numbers, so that a token's
    sum does not depend on its neighbours.
    """
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for expert in torch.unique(chosen).tolist():
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        inner = torch.relu(linear(hidden[token], up[expert])).square()
        total.index_add_(0, token, linear(inner, down[expert]).float() * weights[token, slot, None].float())
    return total


class Relu2Experts(CPUUnquantizedExperts):  # type: ignore[misc]
    """The experts for vLLM's modular kernel; weights stay as they were loaded."""

    weights_as_loaded = True
    """What the agent asks, which otherwise takes a CPU's experts for packed."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Nothing: the parent packs the weights, after which they could not be updated in place."""

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        *_: object,
        **__: object,
    ) -> None:
        output.copy_(relu2_experts(hidden_states, w1, w2, topk_weights, topk_ids))


def needs_relu2_on_cpu(moe: FusedMoEConfig) -> bool:
    """Whether a layer is one that this module exists for."""
    return bool(current_platform.is_cpu() and moe.activation == MoEActivation.RELU2_NO_MUL)


class OmniMoEMethod(UnquantizedFusedMoEMethod):  # type: ignore[misc]
    """vLLM's own method, except for relu-squared experts on CPU."""

    def __init__(self, moe: FusedMoEConfig) -> None:
        if not needs_relu2_on_cpu(moe):
            super().__init__(moe)
            return
        FusedMoEMethodBase.__init__(self, moe)
        self.unquantized_backend = UnquantizedMoeBackend.CPU
        self.experts_cls = Relu2Experts
        self.supports_pre_processed_weights = True


def register() -> None:
    """Make vLLM use the above. To be called once in a process."""
    CustomOp.register_oot(OmniMoEMethod, name=UnquantizedFusedMoEMethod.__name__)
    checked = FusedMoEConfig.__post_init__

    def post_init(config: FusedMoEConfig) -> None:
        try:
            checked(config)
        except NotImplementedError:
            # The refusal is the last thing the original does: everything else is set by now.
            if not needs_relu2_on_cpu(config):
                raise

    FusedMoEConfig.__post_init__ = post_init
