"""The agent in a real vLLM on the CPU: clean updates ring nothing, and each fault is told of at its update."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omni_rl.api.runs import RunBody
from omni_rl.client import Client
from tests.agent.faults import of_kind
from tests.services.live import live

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CLEAN = "3"


def told(tmp_path: Path, stand: str, *arguments: str, **environment: str) -> dict[str, dict[str, Any]]:
    """By name of each update that a stand makes: what the coordinator said of it."""
    # vLLM inspects models, and runs workers, in processes of its own, which import torchvision first of all.
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("from omni_rl import torchvision_schemas\ntorchvision_schemas.install()\n")
    with live(tmp_path) as url:
        with Client(url) as client:
            client.create_run(RunBody(run="agent", model="tiny", dtype="float32", framework="test"))
        variables = {
            **os.environ,
            "OMNI_RL_AGENT": url,
            "OMNI_RL_RUN": "agent",
            "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "HF_HUB_OFFLINE": "1",
            **environment,
        }
        command = [sys.executable, "-m", stand, str(tmp_path), *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))


@pytest.mark.parametrize(("kind", "dtype"), [("qwen2", "float32"), ("qwen3_moe", "float32")])
def test_every_fault_is_told_of_at_its_update(tmp_path: Path, kind: str, dtype: str) -> None:
    found = told(tmp_path, "tests.agent.stand", kind, dtype, CLEAN)
    faults = of_kind(kind)
    assert faults.keys() == {name for name in found if not name.startswith(("clean", "after"))}
    for name, answer in found.items():
        sentences = [one["sentence"] for one in answer["findings"]]
        if name not in faults:
            assert (name, sentences, answer["different"]) == (name, [], 0)
            assert answer["equal"] > 10
            assert answer["not_comparable"] == 0
            continue
        assert any(faults[name].said in sentence for sentence in sentences), (name, sentences)
        assert answer["findings"][0]["cause"] == faults[name].cause, (name, sentences)


def test_packed_weights_are_never_called_equal(tmp_path: Path) -> None:
    found = told(tmp_path, "tests.agent.stand", "qwen2", "float32", CLEAN, PLAIN="0")
    packed = found["packed"]
    assert (packed["findings"], packed["different"]) == ([], 0)
    assert packed["not_comparable"] > packed["equal"]
    assert "packed for the CPU's kernels" in next(iter(packed["reasons"]))
