"""The transports vllm_nccl and vllm_ipc from their setting to an engine; only what a device does is played by fakes."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from omni_rl.client import publish
from omni_rl.errors import ConfigError, EngineDeadError, SyncRolledBackError
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.transfer import Engines, init_info
from omni_rl.settings import TransferBackend, Transport
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.sources import PublishedSource
from tests.rollout.test_vllm_transport import FakeEngine

CPU = torch.device("cpu")
RUN = "transfer"
CHANGED = ("language_model.lm_head.weight", "mlp1.1.weight")
"""The second is of the vision projector."""


class Heard:
    """A handle whose engine writes down what it is told, once all `together` are told something."""

    def __init__(self, together: threading.Barrier, fails: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self._together, self._fails = together, fails

    def between_steps(self, run: Callable[[Any], Any]) -> Any:
        run(self)

    def transfer(self, call: str, arguments: dict[str, Any]) -> None:
        self._together.wait(10)
        self.calls.append((call, arguments))
        if call == self._fails:
            raise EngineDeadError(f"{call} ended")


def heard(count: int, fails: str = "") -> list[Heard]:
    together = threading.Barrier(count)
    return [Heard(together, fails if number else "") for number in range(count)]


def test_engines_are_told_together_and_each_has_a_rank_of_its_own() -> None:
    """They meet in a collective: one after the other, the first would wait for the second for ever."""
    handles = heard(3)
    client = Engines(handles)
    assert isinstance(client, VLLMWeightSyncClient)
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 4})
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.finish_weight_update("ignored")
    for number, handle in enumerate(handles):
        assert handle.calls == [
            ("shutdown_weight_transfer_engine", {}),
            ("init_weight_transfer_engine", {"init_info": {"rank_offset": 1 + number, "world_size": 4}}),
            ("start_weight_update", {}),
            ("update_weights", {"update_info": {"names": ["a"]}}),
            ("finish_weight_update", {}),
        ]


def test_an_engine_that_fails_fails_the_call() -> None:
    with pytest.raises(EngineDeadError, match="start_weight_update ended"):
        Engines(heard(2, fails="start_weight_update")).start_weight_update()


def test_each_connection_is_opened_with_vllms_own_words() -> None:
    first, second = init_info("nccl", 3), init_info("nccl", 3)
    assert isinstance(first, NCCLTrainerInitInfo)
    assert isinstance(second, NCCLTrainerInitInfo)
    assert (first.world_size, first.is_sender) == (4, True)
    assert first.master_port != second.master_port
    ipc = init_info("ipc", 1)
    assert isinstance(ipc, IPCTrainerInitInfo)
    assert ipc.is_sender


class Started:
    """What a handle says of an engine that nobody asks anything of."""

    name = "rollout-0"

    def __init__(self, model: Path, backend: TransferBackend | None) -> None:
        self.settings = EngineSettings(model=model, run=RUN, weight_transfer=backend)


@pytest.mark.parametrize(
    ("transport", "backend", "device", "reason"),
    [
        ("vllm_nccl", "nccl", None, 'a CUDA device of this process, but .*; take the transport "slab"'),
        ("vllm_ipc", "nccl", CPU, "rollout-0 were not; end them"),
        ("vllm_nccl", None, CPU, "rollout-0 were not; end them"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_slabs_are_made(
    small_checkpoint: Path,
    tmp_path: Path,
    transport: Transport,
    backend: TransferBackend | None,
    device: torch.device | None,
    reason: str,
) -> None:
    if device is None and torch.cuda.is_available():
        pytest.skip("this process has a CUDA device")
    handle = cast(RolloutHandle, Started(small_checkpoint, backend))
    slabs = tmp_path / "slabs"
    with (
        opened_journal(tmp_path / "ledger.db", RUN) as journal,
        pytest.raises(ConfigError, match=reason),
        weight_sync([handle], journal, base=slabs, transport=transport, device=device),
    ):
        pass
    assert not slabs.exists()


class SentByRay(FakeEngine):
    """In the place of vLLM's ipc sender: tensors, not handles of a device's memory, go to the engines."""

    init_info_cls = IPCTrainerInitInfo

    @classmethod
    def trainer_init(
        cls, init_info: IPCTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> "SentByRay":
        client.init_weight_transfer_engine({"packed": init_info.packed})
        return cls(client=client, source=source)

    def shutdown(self) -> None:
        pass


@pytest.fixture
def _sent_by_ray() -> Iterator[None]:
    own = WeightTransferTrainerFactory._registry["ipc"]
    WeightTransferTrainerFactory._registry["ipc"] = lambda: SentByRay
    yield
    WeightTransferTrainerFactory._registry["ipc"] = own


def receive(handle: RolloutHandle, *, but: str = "") -> list[str]:
    """Let the engine's worker load what arrives as it is, `but` one tensor; what stood there before, by its class."""

    def install(engine: Any) -> list[str]:
        # Pickled by value, as nothing of tests is known in the engine's process.
        class Received:
            def __init__(self, model: Any) -> None:
                self.model = model

            def parse_init_info(self, init_info: dict[str, Any]) -> Any:
                return init_info

            def init_transfer_engine(self, init_info: Any) -> None: ...

            def start_weight_update(self) -> None: ...

            def update_weights(self, update_info: dict[str, Any]) -> None:
                named = zip(update_info["names"], update_info["tensors"], strict=True)
                self.model.load_weights([(name, tensor) for name, tensor in named if name != but])

            def finish_weight_update(self) -> None: ...

            def reset_weight_update_target(self) -> None: ...

            def shutdown(self) -> None: ...

        def swap(wrapper: Any) -> str:
            worker = wrapper.worker  # the wrapper reads through to it, but keeps what is set
            before = type(worker.weight_transfer_engine).__name__
            worker.weight_transfer_engine = Received(worker.model_runner.get_model())
            return before

        found: list[str] = engine.llm_engine.collective_rpc(swap)
        return found

    return handle.between_steps(install)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("local_ray", "_sent_by_ray")
def test_a_sync_through_vllms_transfer_is_proven_or_taken_back(small_checkpoint: Path, tmp_path: Path) -> None:
    """A real engine, and vLLM's own calls of its worker. That the projector stays as it was is what vLLM 0.32's reload
    does: it is found, and the engine is replaced by one with the weights that were served before."""
    original = dict(CheckpointTensors(small_checkpoint, torch.float32, RELEASED))
    slabs = tmp_path / "slabs"

    def published(factor: float, number: int) -> PublishedSource:
        weights = {name: value * factor if name in CHANGED else value for name, value in original.items()}
        found = publish(weights, run=RUN, number=number, directory=slabs)
        return PublishedSource(found.path, found.version)

    settings = EngineSettings(model=small_checkpoint, run=RUN, weight_transfer="ipc")
    with (
        RolloutHandle.start(settings) as handle,
        opened_journal(tmp_path / "ledger.db", RUN) as journal,
        weight_sync([handle], journal, base=slabs, transport="vllm_ipc", device=CPU) as sync,
    ):
        assert receive(handle) == ["IPCWeightTransferEngine"]
        result = sync.sync(published(2.0, 1))
        assert result.elements_proven == result.elements > 0
        assert handle.weight_version == result.version
        served, process = result.version, handle.pid

        receive(handle, but=CHANGED[1])
        with pytest.raises(SyncRolledBackError, match=r"mlp1\.1\.weight"):
            sync.sync(published(3.0, 2))
        assert handle.weight_version == served
        assert handle.pid != process
        receive(handle)
        assert sync.sync(published(3.0, 3)).version == handle.weight_version != served
