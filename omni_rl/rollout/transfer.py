"""Tells vLLM's own weight transfer about this run's engines: which they are, and where the sender waits for them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import ray
from vllm.distributed.weight_transfer.base import TrainerInitInfo
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.utils.network_utils import get_open_port

from omni_rl.settings import TransferBackend

if TYPE_CHECKING:
    from omni_rl.rollout.engine import RolloutEngine


class Reached(Protocol):
    """The part of an engine's handle that a transfer uses."""

    def between_steps(self, run: "Callable[[RolloutEngine], Any]") -> Any: ...


class Engines:
    """Implements vLLM's `VLLMWeightSyncClient` with the handles of independent engines, of one worker each.

    Every call goes to all engines at once and waits for all, because they meet in the transfer's collectives. An engine
    that cannot be reached fails the call, so no replica of the run is left out unnoticed.
    """

    def __init__(self, handles: Sequence[Reached]) -> None:
        self._handles = handles

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        # A connection that was given up is still open in the engines that outlived it.
        self._tell("shutdown_weight_transfer_engine", [{}] * len(self._handles))
        infos = [dict(init_info) for _ in self._handles]
        for number, info in enumerate(infos):
            # Each engine takes itself for the only one: its worker is rank 0, moved by the offset.
            if "rank_offset" in info:
                info["rank_offset"] += number
        self._tell("init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        self._tell("start_weight_update", [{}] * len(self._handles))

    def update_weights(self, update_info: Any) -> None:
        self._tell("update_weights", [{"update_info": update_info}] * len(self._handles))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        # Weights get their version once they were proven, from the sync that proved them.
        self._tell("finish_weight_update", [{}] * len(self._handles))

    def _tell(self, call: str, arguments: Sequence[Mapping[str, Any]]) -> None:
        with ThreadPoolExecutor(len(self._handles), "transfer") as telling:
            answers = [
                telling.submit(handle.between_steps, partial(_obey, call=call, arguments=given))
                for handle, given in zip(self._handles, arguments, strict=True)
            ]
        for answer in answers:
            answer.result()


def init_info(backend: TransferBackend, engines: int) -> TrainerInitInfo:
    """Return what this process, the only sender, opens a new connection to `engines` engines with; nccl meets at a free
    port of this node."""
    if backend == "ipc":
        return IPCTrainerInitInfo(rank=0, packed=True)
    return NCCLTrainerInitInfo(
        rank=0,
        master_address=ray.util.get_node_ip_address(),
        master_port=get_open_port(),
        world_size=1 + engines,
    )


def _obey(engine: "RolloutEngine", call: str, arguments: Mapping[str, Any]) -> None:
    engine.transfer(call, arguments)
