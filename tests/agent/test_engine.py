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
from tests.services.live import live

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CLEAN = "3"
SAID = {
    "no_update": "changed 0 of ",
    "one_layer": "parts of layer 1 are those of update ",
    "one_tensor": "layers.0.self_attn.o_proj.weight is that of update ",
    "half": " are those of update ",
    "q_and_k_swapped": "layers.1.self_attn.q_proj.weight and layers.1.self_attn.k_proj.weight are swapped",
    "zeroed": "layers.1.post_attention_layernorm.weight is zero in the engine",
    "nan": "layers.0.self_attn.v_proj.weight is not finite in 1 elements",
    "copied_in_place": "norm.weight is neither the trainer's nor those of an update before",
    "old_after_wake": "the engine holds ",
    "prefix_cache": "prefix cache not reset since update ",
}
STALE = {"no_update", "one_layer", "one_tensor", "half", "old_after_wake"}


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


def test_every_fault_is_told_of_at_its_update(tmp_path: Path) -> None:
    found = told(tmp_path, "tests.agent.stand", "qwen2", "float32", CLEAN)
    for name, answer in found.items():
        sentences = [one["sentence"] for one in answer["findings"]]
        if name.startswith(("clean", "after")):
            assert (name, sentences, answer["different"]) == (name, [], 0)
            assert answer["equal"] > 10
            assert answer["not_comparable"] == 0
            continue
        assert any(SAID[name] in sentence for sentence in sentences), (name, sentences)
        cause = "stale_cache" if name == "prefix_cache" else "stale_weights" if name in STALE else "corrupt_weights"
        assert answer["findings"][0]["cause"] == cause, (name, sentences)
    assert {name for name in found if not name.startswith(("clean", "after"))} <= SAID.keys()


def test_packed_weights_are_never_called_equal(tmp_path: Path) -> None:
    found = told(tmp_path, "tests.agent.stand", "qwen2", "float32", CLEAN, PLAIN="0")
    packed = found["packed"]
    assert (packed["findings"], packed["different"]) == ([], 0)
    assert packed["not_comparable"] > packed["equal"]
    assert "packed for the CPU's kernels" in next(iter(packed["reasons"]))
