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
CLEAN = 3
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
    "experts_of_one_layer": "layer 1's experts are those of update ",
    "two_experts_swapped": "layer 1's experts 0 and 1 are swapped",
}
STALE = {"no_update", "one_layer", "one_tensor", "half", "old_after_wake", "experts_of_one_layer"}


def told(tmp_path: Path, kind: str, dtype: str, clean: int = CLEAN, **environment: str) -> dict[str, dict[str, Any]]:
    """By name of each update that the stand makes: what the coordinator said of it."""
    with live(tmp_path) as url:
        with Client(url) as client:
            client.create_run(RunBody(run="agent", model=kind, dtype="float32", framework="test"))
        variables = {
            **os.environ,
            "OMNI_RL_AGENT": url,
            "OMNI_RL_RUN": "agent",
            "PYTHONPATH": str(ROOT),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "HF_HUB_OFFLINE": "1",
            **environment,
        }
        command = [sys.executable, "-m", "tests.agent.stand", kind, dtype, str(tmp_path / "model"), str(clean)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))


@pytest.mark.parametrize(("kind", "dtype"), [("qwen2", "float32"), ("qwen2", "bfloat16"), ("qwen3_moe", "bfloat16")])
def test_every_fault_is_told_of_at_its_update(tmp_path: Path, kind: str, dtype: str) -> None:
    found = told(tmp_path, kind, dtype)
    for name, answer in found.items():
        sentences = [one["sentence"] for one in answer["findings"]]
        if name.startswith(("clean", "after")):
            assert (name, sentences, answer["different"]) == (name, [], 0)
            assert answer["equal"] > 10
            assert answer["not_comparable"] == (1 if kind == "qwen2" and answer["reasons"] else 0)
            continue
        assert any(SAID[name] in sentence for sentence in sentences), (name, sentences)
        cause = "stale_cache" if name == "prefix_cache" else "stale_weights" if name in STALE else "corrupt_weights"
        assert answer["findings"][0]["cause"] == cause, (name, sentences)
    assert {name for name in found if not name.startswith(("clean", "after"))} <= SAID.keys()


def test_packed_weights_are_never_called_equal(tmp_path: Path) -> None:
    found = told(tmp_path, "qwen2", "float32", PLAIN="0")
    assert found["clean 0"]["not_comparable"] > found["clean 0"]["equal"]
    assert "packed for the CPU's kernels" in next(iter(found["clean 0"]["reasons"]))
