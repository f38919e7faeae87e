"""vLLM's own weight transfer against its interface; the device side, which needs GPUs, is played by fakes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from omni_rl.errors import SlabError, SyncRolledBackError, WeightUpdateError
from omni_rl.rollout.vllm_transport import VllmTransport
from omni_rl.sync.digest import checksums, shapes
from omni_rl.sync.manifest import Manifest, arrange, end
from omni_rl.sync.slab import Slab
from tests.chaos.fake_engine import NumberSource
from tests.chaos.in_process import LocalRun


@dataclass
class FakeInitInfo(TrainerInitInfo):  # type: ignore[misc]
    backend: ClassVar[str] = "fake"
    port: int = 1


@dataclass
class FakeReplicas:
    """The four calls that vLLM's trainer side makes of a replica, in their order, and what was sent meanwhile."""

    events: list[str] = field(default_factory=list)
    held: dict[str, torch.Tensor] = field(default_factory=dict)
    refuse: bool = False

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.events.append(f"init {init_info}")

    def start_weight_update(self) -> None:
        self.events.append("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if self.refuse:
            raise ConnectionError("the link is down")
        self.events.append(f"update {len(update_info['names'])}")
        self.held = dict(zip(update_info["names"], update_info["tensors"], strict=True))
        for name, dtype, shape in zip(*(update_info[key] for key in ("names", "dtype_names", "shapes")), strict=True):
            assert (str(self.held[name].dtype), list(self.held[name].shape)) == (f"torch.{dtype}", shape)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.events.append("finish")


class FakeEngine(TrainerWeightTransferEngine):  # type: ignore[misc]
    """Does what vLLM's trainer engines do but for the device: metadata first, then the tensors in the same order."""

    @classmethod
    def trainer_init(
        cls, init_info: FakeInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> "FakeEngine":
        client.init_weight_transfer_engine({"port": init_info.port})
        return cls(client=client, source=source)

    def send_weights(self) -> None:
        self.client.start_weight_update()
        metadata = self.source.metadata()
        sent = list(self.source)
        assert [name for name, _ in sent] == [entry.name for entry in metadata]
        self.client.update_weights(
            {
                "names": [entry.name for entry in metadata],
                "dtype_names": [str(entry.dtype).removeprefix("torch.") for entry in metadata],
                "shapes": [list(entry.shape) for entry in metadata],
                "tensors": [tensor.clone() for _, tensor in sent],
            }
        )
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.client.events.append("shutdown")


@pytest.fixture(autouse=True)
def _fake_backend() -> Iterator[None]:
    WeightTransferTrainerFactory.register_engine("fake", FakeEngine)
    yield
    del WeightTransferTrainerFactory._registry["fake"]


def sealed(path: Path, seed: int) -> tuple[Slab, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "a.weight": torch.randn(3, 5, generator=generator).bfloat16(),
        "b.A_log": torch.randn(4, generator=generator),
    }
    at = arrange(shapes(weights.items()))
    slab = Slab.create(path, end(at))
    with slab.writing(at):
        for name, tensor in weights.items():
            slab.write(name, tensor)
        slab.seal(Manifest.seal(at, checksums(weights), run="run", attempt=1, number=seed))
    return slab, weights


def make(replicas: FakeReplicas) -> VllmTransport:
    return VllmTransport(lambda: FakeInitInfo(rank=0), replicas, torch.device("cpu"))


def test_the_slab_is_sent_whole_over_one_connection(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    transport = make(replicas)
    assert transport.pushes
    for number in range(2):
        slab, weights = sealed(tmp_path / f"slab-{number}.weights", number)
        transport.stage(slab)
        transport.push()
        assert replicas.held.keys() == weights.keys()
        assert all(torch.equal(replicas.held[name], weights[name]) for name in weights)
    transport.close()
    transport.close()
    round_trip = ["start", "update 2", "finish"]
    assert replicas.events == ["init {'port': 1}", *round_trip, *round_trip, "shutdown"]


def test_a_failed_push_says_that_there_is_no_way_back_and_the_next_connects_anew(tmp_path: Path) -> None:
    replicas = FakeReplicas(refuse=True)
    transport = make(replicas)
    slab, weights = sealed(tmp_path / "slab-0.weights", 0)
    transport.stage(slab)
    with pytest.raises(WeightUpdateError, match=r"the link is down.*no rollback: quarantine"):
        transport.push()
    assert replicas.events[-1] == "shutdown"
    assert replicas.held == {}
    replicas.refuse = False
    transport.push()
    assert replicas.held.keys() == weights.keys()
    assert replicas.events.count("init {'port': 1}") == 2


def test_only_sealed_weights_are_sent(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    transport = make(replicas)
    with pytest.raises(WeightUpdateError, match="nothing was staged"):
        transport.push()
    with pytest.raises(SlabError, match="not sealed"):
        transport.stage(Slab.create(tmp_path / "slab-0.weights", 100))
    assert replicas.events == []


@dataclass
class PushedInto(FakeReplicas):
    """What arrives lies in the engines of a run, but for one tensor in one of them if `drop` says so."""

    run: LocalRun | None = None
    drop: tuple[str, str] | None = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        super().update_weights(update_info)
        assert self.run is not None
        for name, replica in self.run.replicas.items():
            assert replica.service.status.standing == "unproven", "a push meets engines that stand still"
            for tensor, values in self.held.items():
                if (name, tensor) != self.drop:
                    replica.engine._held[tensor].copy_(values)


def test_a_sync_pushes_between_pause_and_proof(tmp_path: Path) -> None:
    replicas = PushedInto()
    replicas.run = run = LocalRun(tmp_path, transport=make(replicas))
    assert replicas.events == []  # the first weights are those that the engines loaded
    result = run.sync.sync(NumberSource(1))
    assert result.elements_proven == result.elements
    assert run.all_serve(result.version)
    assert replicas.events == ["init {'port': 1}", "start", "update 3", "finish"]
    run.close()


@pytest.mark.parametrize("fault", ["refuse", "drop"])
def test_a_push_that_went_wrong_leaves_no_engine_that_was_touched(tmp_path: Path, fault: str) -> None:
    """There is no way back from it: both engines are replaced, and serve the old weights from their host's slab."""
    replicas = PushedInto()
    replicas.run = run = LocalRun(tmp_path, transport=make(replicas))
    before, engines = run.sync.version, [replica.engine for replica in run.replicas.values()]
    replicas.refuse, replicas.drop = fault == "refuse", ("r1", "norm") if fault == "drop" else None
    reason = "the link is down" if fault == "refuse" else "replica r1: does not hold .* norm: element 0 differs"
    with pytest.raises(SyncRolledBackError, match=reason):
        run.sync.sync(NumberSource(1))
    assert run.all_serve(before)
    assert not {id(replica.engine) for replica in run.replicas.values()} & set(map(id, engines))
    replicas.refuse, replicas.drop = False, None
    assert run.all_serve(run.sync.sync(NumberSource(1)).version)
    run.close()


@pytest.mark.parametrize("backend", ["nccl", "ipc"])
def test_vllm_has_the_trainer_engines_that_this_is_written_for(backend: str) -> None:
    engine = WeightTransferTrainerFactory._registry[backend]()
    assert issubclass(engine, TrainerWeightTransferEngine)
    assert engine.init_info_cls.backend == backend
