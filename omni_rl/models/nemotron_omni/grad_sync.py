"""Accumulates gradients under FSDP: they are reduced once, with the last backward."""

from torch import nn
from torch.distributed.fsdp import FSDPModule


class MoEFSDPSyncMixin:
    """Turns gradient reduction off for the accumulation steps and on for the last, on every FSDP unit."""

    def prepare_for_grad_accumulation(self, pp_enabled: bool = False) -> None:
        """Turn gradient reduction off; to be called before the first of several backwards."""
        self._set_gradient_sync(False)

    def prepare_for_final_backward(self, pp_enabled: bool = False) -> None:
        """Turn gradient reduction on; to be called before the last backward of a step. With `pp_enabled` the pipeline's
        schedule reduces gradients itself."""
        if not pp_enabled:
            self._set_gradient_sync(True)

    def _set_gradient_sync(self, enabled: bool) -> None:
        assert isinstance(self, nn.Module)
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.set_is_last_backward(enabled)
                module.set_requires_gradient_sync(enabled, recurse=False)
