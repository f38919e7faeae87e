"""A driver on a host without a Ray node: the bridge brings one, which offers nothing and ends with it."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl.actors import share
from omni_rl.bridge.child import answers
from omni_rl.processes import wait_until_gone
from omni_rl.runtime import variables
from omni_rl.service.ports import free_port
from omni_rl.service.state import MARK, marked

PATIENCE = 120.0
DRIVER = """
import json, sys, time, ray
from omni_rl.bridge.node import join
join(sys.argv[1])
while not ray.is_initialized():
    try:
        ray.init(address=sys.argv[1], log_to_driver=False)
    except ConnectionError:  # Ray waits five seconds for the node, of which a busy machine makes more
        time.sleep(1)
while len(ray.nodes()) < 2:
    time.sleep(0.1)
print(json.dumps([node["Resources"].get("CPU", 0) for node in ray.nodes()]), flush=True)
time.sleep(600)
"""


def test_resources_are_ray_options_and_gpus_are_devices() -> None:
    of_both_sides = {"runtime_env": {"env_vars": variables()}}
    rollout = {"num_cpus": 0.5, "num_gpus": 1, "resources": {"rollout": 0.1}}
    assert share(0.5, {"rollout": 0.1, "GPU": 1}) == rollout | of_both_sides
    assert share(0.25, {}) == {"num_cpus": 0.25, "num_gpus": 0, "resources": {}} | of_both_sides


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a Ray head with one CPU, which this process and its children have the token of."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    port = free_port()
    # A Unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="omni-rl-", ignore_cleanup_errors=True) as directory:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=1"]
        command += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={directory}"]
        command += ["--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
        command += ["--object-store-memory=80000000"]
        log = Path(directory) / "log"
        with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
            address, deadline = f"127.0.0.1:{port}", time.monotonic() + PATIENCE
            try:
                while not answers(address):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.2)
                yield address
            finally:
                process.terminate()


@pytest.mark.slow
def test_a_bridge_joins_a_cluster_and_leaves_nothing(head: str) -> None:
    environment = {**os.environ, MARK: f"test-{os.getpid()}"}
    command = [sys.executable, "-c", DRIVER, head]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        # What `ray start` says comes first.
        cpus = next(json.loads(line) for line in driver.stdout if line.startswith("["))
        driver.send_signal(signal.SIGKILL)
    assert sorted(cpus) == [0, 1]
    wait_until_gone(marked(environment[MARK]))
    assert marked(environment[MARK]) == []
