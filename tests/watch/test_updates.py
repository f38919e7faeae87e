"""Updates that a trainer of one's own announces: what the coordinator lists, and that nothing of it can end the run."""

import asyncio
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn

from omni_rl import watch
from omni_rl.agent import announced, install, trainer
from omni_rl.agent.bodies import sum_body
from omni_rl.agent.tensors import fingerprint
from omni_rl.api.runs import RunBody
from omni_rl.api.updates import HeldPart, ReceiptBody
from omni_rl.client import Client
from omni_rl.files.weights import WEIGHTS
from omni_rl.sync.slab import Slab
from omni_rl.train.rendezvous import LOOPBACK
from omni_rl.train.settings import TrainSettings
from omni_rl.train.worker import TrainWorker
from omni_rl.watch import updates, verl_updates
from tests.services.live import live


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Of a coordinator that this process's trainer is told of by its environment, as it would be."""
    with live(tmp_path) as url, Client(url) as client:
        client.create_run(RunBody(run="mine", model="tiny", dtype="bfloat16", framework="test"))
        monkeypatch.setenv("OMNI_RL_AGENT", url)
        monkeypatch.setenv("OMNI_RL_RUN", "mine")
        updates._announcer.cache_clear()
        yield client
        updates._announcer.cache_clear()


def held(model: nn.Module, at: float) -> ReceiptBody:
    """What an engine says that has a model's weights in bfloat16."""
    parts = {name: HeldPart(sum_body(fingerprint(value.bfloat16()))) for name, value in model.named_parameters()}
    return ReceiptBody(session="s", at=at, began=at, how=("load_weights",), tensors=2, changed=2, parts=parts)


def test_an_engine_is_compared_with_what_a_plain_trainer_announces(client: Client) -> None:
    model = nn.Linear(4, 3)
    watch.update(model, 1)
    assert announced.newest() == 1
    assert install.flush(30)
    (told,) = client.updates("mine")
    assert (told.engine, told.number, told.tensors) == (None, 1, 2)
    answer = client.put_update("mine", "e0", 0, held(model, told.at + 1))
    assert (answer.of, answer.equal, answer.different) == (1, 2, 0)
    with torch.no_grad():
        model.weight.add_(1.0)
    stale = held(nn.Linear(4, 3), told.at + 1)
    watch.update(model, 2)
    assert install.flush(30)
    answer = client.put_update("mine", "e0", 1, stale.model_copy(update={"of": 2}))
    assert (answer.of, answer.different) == (2, 2)


def test_a_number_is_announced_once_and_a_lower_one_begins_a_new_session(client: Client) -> None:
    model = nn.Linear(4, 3)
    for number in (7, 7, 8, 3):
        watch.update(model, number)
    assert install.flush(30)
    assert [told.number for told in client.updates("mine")] == [3, 8, 7]


@pytest.fixture
def worker(client: Client, tmp_path: Path) -> Iterator[TrainWorker]:
    """The only rank of a trainer, which has joined its process group."""
    alone = TrainWorker(0, TrainSettings(world_size=1), "mine", 1)
    alone.join(LOOPBACK, alone.listen(LOOPBACK))
    yield alone
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_state_of_the_number_that_was_announced_last_is_announced_if_its_weights_are_others(
    client: Client, worker: TrainWorker, small_checkpoint: Path, tmp_path: Path
) -> None:
    """A job that ended at update 21 and one that goes on from another's update 21 share a trainer."""
    other = Path(shutil.copytree(small_checkpoint, tmp_path / "other"))
    weights = load_file(other / WEIGHTS)
    save_file({name: -value for name, value in weights.items()}, other / WEIGHTS, {"format": "pt"})
    slab = Slab.create(tmp_path / "engine.weights", 2**23)
    for state in (small_checkpoint, small_checkpoint, other):
        worker.build(state, 21)
        worker.fill(slab.path, True, None)
    assert install.flush(30)
    told = [one for one in client.updates("mine") if one.engine is None]
    assert [one.number for one in told] == [21, 21]
    parts = {name: HeldPart(sum_body(fingerprint(value))) for name, value in slab.tensors().items()}
    body = held(nn.Linear(1, 1), told[0].at + 1).model_copy(update={"parts": parts, "tensors": len(parts)})
    answer = client.put_update("mine", "e0", 21, body)
    assert (answer.of, answer.different, answer.findings) == (21, 0, [])
    assert answer.equal > 0


def test_fingerprints_that_fail_are_told_once_and_accuse_no_engine(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(4, 3)
    watch.update(model, 1)

    def fail(*_: object) -> None:
        raise MemoryError("no room for a piece, of all pieces")

    monkeypatch.setattr(trainer, "fingerprint", fail)
    with caplog.at_level(logging.WARNING):
        for number in (2, 3):
            watch.update(model, number)
    assert install.flush(30)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("omni_rl")] == [
        "omni-rl: an update's fingerprints are missing: MemoryError: no room for a piece, of all pieces"
    ]
    newest = client.updates("mine")[0]
    assert newest.number == 3
    # The engine has the third update's weights, which nobody can say anything of.
    answer = client.put_update("mine", "e0", 0, held(nn.Linear(4, 3), newest.at + 1))
    assert (answer.of, answer.different, answer.findings) == (3, 0, [])


def test_without_the_variable_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNI_RL_AGENT", raising=False)
    updates._announcer.cache_clear()
    before = announced.newest()
    watch.update(nn.Linear(4, 3), 99)
    assert announced.newest() == before


class Exporting:
    """verl's engine of a trainer, as far as a sync asks it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def get_per_tensor_param(self, **_: object) -> tuple[Iterator[tuple[str, torch.Tensor]], None]:
        return ((name, value.detach()) for name, value in self.model.named_parameters()), None


class Worker:
    """verl's worker, whose sync takes what its engine yields."""

    def __init__(self, engine: object) -> None:
        self.actor = SimpleNamespace(engine=engine)
        self.config = SimpleNamespace(rollout=SimpleNamespace(dtype="bfloat16"))
        self.sent: dict[str, torch.Tensor] = {}

    async def update_weights(self, global_steps: int | None = None, mode: str = "auto") -> str:
        tensors, _ = self.actor.engine.get_per_tensor_param(base_sync_done=True)
        self.sent = dict(tensors)
        return mode


@pytest.fixture
def verl(tmp_path: Path) -> Iterator[type[Worker]]:
    """The worker as verl's module has it, once that is loaded; this process is all ranks."""
    module = ModuleType(verl_updates.MODULE)
    vars(module)["ActorRolloutRefWorker"] = type("ActorRolloutRefWorker", (Worker,), {})
    sys.modules[verl_updates.MODULE] = module
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    verl_updates.announce_updates()
    yield module.ActorRolloutRefWorker
    distributed.destroy_process_group()
    del sys.modules[verl_updates.MODULE]


def test_what_verl_sends_is_announced_under_its_step(client: Client, verl: type[Worker]) -> None:
    model = nn.Linear(4, 3)
    worker = verl(Exporting(model))
    assert asyncio.run(worker.update_weights(5, "naive")) == "naive"
    assert torch.equal(worker.sent["weight"], model.weight)
    asyncio.run(worker.update_weights())  # a validation's: the same weights again
    assert install.flush(30)
    (told,) = client.updates("mine")
    assert (told.engine, told.number, told.tensors) == (None, 5, 2)
    answer = client.put_update("mine", "e0", 0, held(model, told.at + 1))
    assert (answer.of, answer.equal, answer.different) == (5, 2, 0)


def test_verls_update_goes_through_whatever_fails_in_its_announcement(
    client: Client, verl: type[Worker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room for a piece of what verl sends")

    monkeypatch.setattr(trainer, "fingerprint", fail)
    model = nn.Linear(4, 3)
    worker = verl(Exporting(model))
    with caplog.at_level(logging.WARNING):
        for number in (1, 2):
            asyncio.run(worker.update_weights(number))
            assert torch.equal(worker.sent["weight"], model.weight)
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("omni_rl")]
    assert "an update's fingerprints are missing" in warning
