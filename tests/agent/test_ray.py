"""An engine that a Ray actor hosts, beside a trainer in the driver: the agent is there by the environment alone, and
whatever happens to it, the updates go through."""

import http.server
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from omni_rl import torchvision_schemas, watch
from omni_rl.agent import install
from omni_rl.api.runs import RunBody
from omni_rl.api.updates import UpdateAnswer
from omni_rl.client import Client
from omni_rl.watch import updates
from tests.watch.conftest import CoordinatorProcess

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
RUN = "ray"
ENGINE = "hosted"


class Host:
    """Hosts a vLLM engine as anybody's actor does, and keeps what the agent logs."""

    def __init__(self, model: str) -> None:
        torchvision_schemas.install()
        from vllm import LLM

        from tests.agent.plain import plain_weights

        plain_weights()
        self.said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self.said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("omni_rl").addHandler(handler)
        self.llm = LLM(
            model,
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype="float32",
            max_model_len=64,
            kv_cache_memory_bytes=1 << 24,
        )
        self.generate()

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        model = self.llm.llm_engine.model_executor.driver_worker.worker.get_model()
        model.load_weights(iter(weights.items()))
        self.llm.reset_prefix_cache()

    def generate(self) -> int:
        from vllm import SamplingParams

        prompt: Any = {"prompt_token_ids": list(range(1, 20))}
        (answer,) = self.llm.generate([prompt], SamplingParams(max_tokens=2, detokenize=False), use_tqdm=False)
        return len(answer.outputs[0].token_ids)

    def norm(self) -> torch.Tensor:
        """The last norm's weights, as the engine holds them."""
        model = self.llm.llm_engine.model_executor.driver_worker.worker.get_model()
        held: torch.Tensor = dict(model.named_parameters())["model.norm.weight"]
        return held.detach().clone()

    def flush(self) -> bool:
        return install.flush(30)

    def warnings(self) -> list[str]:
        """What was logged since the last call."""
        said, self.said = self.said, []
        return said

    def break_agent(self) -> None:
        """Nothing can be hashed from now on."""
        from omni_rl.agent import watching

        def fail(*_: object) -> None:
            raise MemoryError("no room for a piece")

        vars(watching)["fingerprint"] = fail


class Rig:
    """The trainer, its engine and their coordinator."""

    def __init__(self, model: Any, host: Any, coordinator: CoordinatorProcess) -> None:
        self.model = model
        self.host = host
        self.coordinator = coordinator
        self.number = 0

    def learn(self, lost: str = "-") -> None:
        """One update, but for what has `lost` in its name; fails unless the engine has it, and generates."""
        self.number += 1
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.01)
        watch.update(self.model, self.number, dtype="float32")
        weights = {name: value.detach() for name, value in self.model.named_parameters() if lost not in name}
        ray.get(self.host.load.remote(weights))
        assert torch.equal(ray.get(self.host.norm.remote()), self.model.model.norm.weight)
        assert ray.get(self.host.generate.remote()) == 2

    def receipts(self) -> list[UpdateAnswer]:
        """What came of the engine's updates, oldest first."""
        assert install.flush(60)
        assert ray.get(self.host.flush.remote())
        with Client(self.coordinator.url) as client:
            return [one for one in client.updates(RUN, 100) if one.engine == ENGINE][::-1]

    def told(self) -> UpdateAnswer:
        """What came of the newest one, once it was compared: which of both words comes first is left to chance."""
        deadline = time.monotonic() + 60
        while (newest := self.receipts()[-1]).of != self.number and time.monotonic() < deadline:
            time.sleep(0.1)
        return newest

    def warnings(self) -> list[str]:
        said: list[str] = ray.get(self.host.warnings.remote())
        return said


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    torchvision_schemas.install()
    from tests.agent.tiny import qwen2

    folder = tmp_path_factory.mktemp("ray")
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("from omni_rl import torchvision_schemas\ntorchvision_schemas.install()\n")
    torch.manual_seed(0)
    tiny = qwen2(folder / "model", torch.float32)
    coordinator = CoordinatorProcess(folder)
    coordinator.start()
    with pytest.MonkeyPatch.context() as patch, Client(coordinator.url) as client:
        client.create_run(RunBody(run=RUN, model="tiny", dtype="float32", framework="test"))
        root = Path(__file__).parents[2]
        variables = {
            "OMNI_RL_AGENT": coordinator.url,
            "OMNI_RL_RUN": RUN,
            "OMNI_RL_AGENT_ENGINE": ENGINE,
            "PYTHONPATH": os.pathsep.join((str(site), str(root))),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        updates._announcer.cache_clear()
        # What Ray starts has the environment of who started it, and nothing else is told to the actor.
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            host = ray.remote(Host).options(num_cpus=1).remote(str(tiny.served))
            ray.get(host.flush.remote())
            yield Rig(tiny.trainer, host, coordinator)
        finally:
            ray.shutdown()
            updates._announcer.cache_clear()
            coordinator.end()


def test_the_agent_is_in_an_engine_that_an_actor_hosts(rig: Rig) -> None:
    (loaded,) = rig.receipts()
    assert (loaded.of, loaded.how[0]) == (None, "load_model")
    for _ in range(2):
        rig.learn()
        told = rig.told()
        assert (told.of, told.different, told.findings) == (rig.number, 0, [])
        assert told.equal > 10
    rig.learn(lost="layers.1.")
    told = rig.told()
    assert (told.of, [one.cause for one in told.findings]) == (3, ["stale_weights"])
    assert "parts of layer 1 are those of update 2" in told.findings[0].sentence


@contextmanager
def garbage(port: int) -> Iterator[list[str]]:
    """What answers every request there with words that are no answer; the requests' paths."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield seen
        server.shutdown()


def test_updates_go_through_while_the_coordinator_is_killed_or_talks_nonsense(rig: Rig) -> None:
    assert rig.warnings() == []
    before = rig.number
    rig.coordinator.kill()
    for _ in range(3):
        rig.learn()
    with garbage(rig.coordinator.port) as seen:
        for _ in range(3):
            rig.learn()
        while not seen:
            time.sleep(0.1)
    rig.coordinator.start()
    rig.learn()
    newest = rig.told()
    assert (newest.of, newest.different, newest.findings) == (before + 7, 0, [])
    # Each state is said once, however many updates there were.
    said = rig.warnings()
    assert len(said) == len(set(said)) <= 3
    assert "nothing can be posted for now" in said[0]
    assert "the coordinator answers again" in said[-1]


def test_updates_go_through_when_the_agent_fails(rig: Rig) -> None:
    known = len(rig.receipts())
    ray.get(rig.host.break_agent.remote())
    for _ in range(3):
        rig.learn()
    (warning,) = rig.warnings()
    assert "the agent failed, and looks no more; the engine goes on" in warning
    assert len(rig.receipts()) == known
