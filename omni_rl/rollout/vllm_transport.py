"""Uses vLLM's own weight transfer (nccl, ipc) as a transport, through its documented interface. It has not yet been run
on a GPU.

vLLM's engines load what arrives with their own reload, which cannot be undone, and which in vLLM 0.32 leaves Omni's
vision projector as it was. What an engine holds afterwards is therefore proven against the slab like anything else, and
a sync of a checkpoint whose projector changed is rolled back until vLLM's reload is mended.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, VLLMWeightSyncClient, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from omni_rl.errors import WeightUpdateError
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab


class SlabWeights(WeightSource):  # type: ignore[misc]  # vLLM is not typed here
    """Lets vLLM read a sealed slab as a trainer's weights: one tensor at a time on `device`, in the manifest's
    order."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.slab: Slab | None = None

    def metadata(self) -> list[Any]:
        return [ParamMeta(e.name, getattr(torch, e.dtype), e.shape) for e in self.staged().sealed().entries]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.staged().tensors().items():
            yield name, tensor.to(self._device)

    def staged(self) -> Slab:
        """Return the staged slab. Raises `WeightUpdateError` if there is none."""
        if self.slab is None:
            raise WeightUpdateError("nothing was staged; stage a sealed slab before push()")
        return self.slab


class VllmTransport:
    """Sends weights from `device` of this process, which is rank 0 of the transfer, to the replicas that `client`
    controls.

    `init_info` makes vLLM's `NCCLTrainerInitInfo` or `IPCTrainerInitInfo` for a new connection: its class picks the
    backend. The first `push` makes the connection, and so does the first one after a `close`; the caller pushes while
    the replicas are paused. A push that fails leaves the engines with unknown weights, and the connection is given up.
    """

    pushes = True

    def __init__(
        self, init_info: Callable[[], TrainerInitInfo], client: VLLMWeightSyncClient, device: torch.device
    ) -> None:
        self._init_info = init_info
        self._client = client
        self._device = device
        self._weights = SlabWeights(device)
        self._engine: Any = None

    def stage(self, slab: Slab) -> None:
        """Choose the slab that `push` sends. Raises `SlabError` unless it is sealed."""
        slab.sealed()
        self._weights.slab = slab

    def holds(self, slab: SlabRef) -> bool:
        """Return True: replicas of this transport map no slab that could be missing."""
        return True

    def push(self) -> None:
        """Send what was staged into the engines.

        Raises `WeightUpdateError` if nothing was staged or the transfer failed. A failed transfer cannot be undone: the
        replicas have to be quarantined and loaded anew.
        """
        version = self._weights.staged().sealed().version
        try:
            with self._as_current():
                if self._engine is None:
                    self._engine = WeightTransferTrainerFactory.trainer_init(
                        self._init_info(), client=self._client, source=self._weights
                    )
                self._engine.send_weights()
        except Exception as error:  # another program's network and device code: anything may come
            self.close()
            raise WeightUpdateError(
                f"vLLM's weight transfer: sending {version} failed ({type(error).__name__}: {error}); engines hold "
                "unknown weights and have no rollback: quarantine them and load them anew"
            ) from error

    def close(self) -> None:
        """End the connection. Idempotent."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()

    def _as_current(self) -> AbstractContextManager[Any]:
        """Return a context in which `device` is the thread's current device: vLLM sends from that, and syncs run in
        threads of their own."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
