"""The service on several Ray nodes of this machine, each a host of its own: asked through its REST API alone."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from omni_rl.client import Client
from omni_rl.service.state import ServiceState, marked
from omni_rl.service.up import environment
from omni_rl.sync.ownership import PREFIX, SHARED_MEMORY

pytestmark = pytest.mark.slow

OTHER = "127.0.0.3"
"""The second node's address, of the loopback network."""
CONFIG = """
[up]
replicas = 2
world_size = 1
transport = "object_store"
strategy = "STRICT_SPREAD"
"""
PATIENCE = 120.0


def omni_rl(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "omni_rl", *arguments]


def plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OMNI_RL", "RAY_"))}


def node(state: ServiceState) -> Sequence[str]:
    """The command with which another host joins the service's Ray."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--block", "--disable-usage-stats", f"--address={state.ray_address}"]
    return [*command, f"--node-ip-address={OTHER}", "--num-cpus=1", f"--object-store-memory={128 * 2**20}"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a service whose second engine found its room when the second node had joined."""
    directory = tmp_path_factory.mktemp("nodes")
    (directory / "up.toml").write_text(CONFIG)
    with contextlib.ExitStack() as stack:
        command = omni_rl("up", "--directory", str(directory), "--port", "0", "--config", str(directory / "up.toml"))
        up = stack.enter_context(subprocess.Popen(command, env=plain()))
        stack.callback(up.kill)
        stack.callback(subprocess.run, omni_rl("down", "--directory", str(directory)), env=plain(), check=True)
        deadline = time.monotonic() + PATIENCE
        while (state := ServiceState.read(directory)) is None or state.head is None:
            assert time.monotonic() < deadline, "no head was started"
            time.sleep(0.1)
        variables = {name: value for name, value in environment(directory, state).items() if name != "RAY_ADDRESS"}
        log = stack.enter_context((directory / "node.log").open("wb"))
        joined: subprocess.Popen[bytes] | None = None
        while up.poll() is None:
            # Ray gives a node 30 s to start, which a busy machine may not keep; whoever runs hosts starts it again.
            if joined is None or joined.poll() is not None:
                joined = subprocess.Popen(node(state), env=variables, stdout=log, stderr=log)
                stack.callback(joined.wait)
                stack.callback(joined.kill)
            time.sleep(0.5)
        assert up.returncode == 0, (directory / "coordinator.log").read_text()[-3000:]
        yield stack.enter_context(Client(state.url, (directory / "tokens" / "owner").read_text()))
    assert marked(state.name) == [], "down left processes"
    assert not list(SHARED_MEMORY.glob(f"{PREFIX}{state.name}*")), "down left slabs"


def test_engines_on_two_nodes_get_the_same_weights_in_one_transaction(client: Client) -> None:
    before = client.state().cluster.members
    assert [member.name for member in before] == ["rollout-0", "rollout-1", "trainer"]
    answer = client.sync()
    assert answer.outcome == "committed"
    assert answer.version == answer.serving
    assert answer.elements_proven == answer.elements > 1_000_000
    members = client.state().cluster.members
    assert {member.version for member in members} == {answer.version}
    assert {phase.replica for phase in answer.phases if phase.phase == "verify" and phase.what == "done"} == {
        "rollout-0",
        "rollout-1",
    }
    # The second host has slabs of its own, filled through the object store.
    there = SHARED_MEMORY / f"{PREFIX}{client.state().cluster.run}-on-{OTHER}"
    digest = answer.version.rpartition("/")[2]
    assert [path for path in there.glob("*.json") if digest in path.read_text()]


def test_a_check_compares_both_engines_with_the_trainer(client: Client) -> None:
    answer = client.check()
    assert (answer.severity, answer.cause) == ("ok", None)
    mean = answer.figures["overall"]["logprob_abs_diff_mean"]
    assert mean is not None
    assert mean < 1e-5
    assert answer.legs.keys() == {"train_vs_prefill", "prefill_vs_decode", "batch_vs_alone"}
