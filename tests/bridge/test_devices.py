"""Transports that need CUDA devices are refused where there are none, with what to do instead, and nothing starts."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from omni_rl.bridge.cluster import Cluster
from omni_rl.bridge.devices import refusal, require_devices
from omni_rl.bridge.settings import ClusterSettings, Hosts
from omni_rl.doctor.gpu import cuda_devices
from omni_rl.errors import ConfigError
from omni_rl.service.settings import SMALL_CHECKPOINT
from omni_rl.settings import Transport

here = pytest.mark.skipif(cuda_devices() > 0, reason="this machine has a CUDA device")
WITH_GPU = {"GPU": 1.0}


def on(transport: Transport, **resources: float) -> Hosts:
    return Hosts(transport=transport, rollout_resources=resources)


@pytest.mark.parametrize(
    ("hosts", "replicas", "devices", "cpu_build", "reason"),
    [
        (on("vllm_nccl"), 1, 0, None, 'this host has none.*take the transport "slab"'),
        (on("vllm_ipc", **WITH_GPU), 1, 2, "2.13.0+cpu", r"torch 2.13.0\+cpu was built without CUDA.*docs/gpu.md"),
        (on("vllm_nccl"), 1, 2, None, "set it to { GPU = 1 }"),
        (
            on("vllm_nccl", **WITH_GPU),
            2,
            2,
            None,
            "2 engine.* one to send from, and this host has 2; lower replicas",
        ),
        (on("vllm_ipc", **WITH_GPU), 2, 8, None, 'one engine, and replicas is 2; take "vllm_nccl"'),
    ],
)
def test_what_a_transfer_lacks_is_said(
    hosts: Hosts, replicas: int, devices: int, cpu_build: str | None, reason: str
) -> None:
    found = refusal(hosts, replicas, devices, cpu_build)
    assert found is not None
    with pytest.raises(ConfigError, match=reason):
        raise ConfigError(found)


@pytest.mark.parametrize(
    ("hosts", "replicas", "devices"), [(on("vllm_nccl", **WITH_GPU), 7, 8), (on("vllm_ipc", **WITH_GPU), 1, 1)]
)
def test_a_host_with_devices_is_accepted(hosts: Hosts, replicas: int, devices: int) -> None:
    assert refusal(hosts, replicas, devices, None) is None


@pytest.mark.parametrize("transport", ["slab", "object_store"])
def test_the_others_need_no_device(transport: Transport) -> None:
    require_devices(on(transport), 8)


@pytest.mark.slow
@here
@pytest.mark.parametrize("given", [("--transport", "vllm_nccl"), ("--config", "up.toml")])
def test_up_refuses_before_anything_starts(tmp_path: Path, given: tuple[str, ...]) -> None:
    (tmp_path / "up.toml").write_text('[up]\ntransport = "vllm_ipc"\n')
    mark = uuid.uuid4().hex
    command = [str(Path(sys.executable).with_name("omni-rl")), "up", "--directory", "service", "--port", "0", *given]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMNI_RL_TEST_MARK": mark}
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith('error [invalid_config]: transport "vllm_')
    assert "this host has none" in line
    assert 'take the transport "slab"' in line
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["up.toml"]
    assert marked(mark) == []


@here
def test_a_coordinator_with_such_a_cluster_does_not_start(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.json"
    path.write_text(json.dumps({"ledger": f"sqlite:///{tmp_path / 'ledger.db'}", "cluster": cluster("vllm_nccl")}))
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "omni_rl_services.coordinator", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMNI_RL_TEST_MARK": mark}
    )
    assert done.returncode == 2
    assert "this host has none" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["coordinator.json"]
    assert marked(mark) == []


@here
def test_a_bridge_asks_torch_before_it_connects() -> None:
    """The address is nobody's: a bridge that went on to connect would say so."""
    settings = ClusterSettings(**cluster("vllm_ipc"))
    with (
        pytest.raises(ConfigError, match=r"a CUDA device of this process, but this torch .* was built without CUDA"),
        Cluster.attached(settings, None),
    ):
        pass


def cluster(transport: Transport) -> dict[str, Any]:
    return {
        "address": "127.0.0.1:1",
        "dashboard": "http://127.0.0.1:2",
        "run": "refused",
        "model": str(SMALL_CHECKPOINT),
        "ledger": "sqlite://",
        "transport": transport,
    }


def marked(mark: str) -> list[int]:
    """Processes that were started with the mark, which a child inherits."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile, or another user's
            continue
        if f"OMNI_RL_TEST_MARK={mark}".encode() in variables:
            found.append(int(entry.name))
    return found
