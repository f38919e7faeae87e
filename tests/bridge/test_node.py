"""A driver on a host without a Ray node: the bridge brings one, which offers nothing and ends with it."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl.actors import share
from omni_rl.processes import wait_until_gone
from omni_rl.service.state import MARK, marked

DRIVER = """
import json, sys, time, ray
from omni_rl.bridge.node import join
join(sys.argv[1])
ray.init(address=sys.argv[1], log_to_driver=False)
while len(ray.nodes()) < 2:
    time.sleep(0.1)
print(json.dumps([node["Resources"].get("CPU", 0) for node in ray.nodes()]), flush=True)
time.sleep(600)
"""


def test_resources_are_ray_options_and_gpus_are_devices() -> None:
    assert share(0.5, {"rollout": 0.1, "GPU": 1}) == {"num_cpus": 0.5, "num_gpus": 1, "resources": {"rollout": 0.1}}
    assert share(0.25, {}) == {"num_cpus": 0.25, "num_gpus": 0, "resources": {}}


@pytest.fixture
def head() -> Iterator[str]:
    """Address of a Ray head with one CPU."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # A Unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="omni-rl-", ignore_cleanup_errors=True) as directory:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=1"]
        command += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={directory}"]
        command += ["--include-dashboard=false", "--ray-client-server-port=0", "--object-store-memory=80000000"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            yield f"127.0.0.1:{port}"
            process.terminate()


@pytest.mark.slow
def test_a_bridge_joins_a_cluster_and_leaves_nothing(head: str) -> None:
    environment = {**os.environ, MARK: f"test-{os.getpid()}"}
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(head.split(":")).close()  # type: ignore[arg-type]
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, head], env=environment, stdout=subprocess.PIPE, text=True)
    with driver:
        assert driver.stdout is not None
        # What `ray start` says comes first.
        cpus = next(json.loads(line) for line in driver.stdout if line.startswith("["))
        driver.send_signal(signal.SIGKILL)
    assert sorted(cpus) == [0, 1]
    left = marked(environment[MARK])
    wait_until_gone(left)
    assert marked(environment[MARK]) == []
