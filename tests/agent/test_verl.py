"""verl's updates: its own worker sends them into a real vLLM, and each fault is told of at its update."""

import os
import subprocess
from pathlib import Path

import pytest

from omni_rl import torchvision_schemas
from omni_rl.api.runs import RunBody
from omni_rl.client import Client
from tests.services.live import live
from tests.watch.trl_process import ROOT
from tools import frameworks

pytestmark = pytest.mark.slow
STEPS = 5
SAID = {2: "layer 1 are those of update 1", 4: "layers.0.self_attn.o_proj.weight is that of update 3"}


def test_what_verls_worker_sends_is_compared_with_what_the_engine_holds(tmp_path: Path) -> None:
    torchvision_schemas.install()
    from tests.watch.trl_models import write_qwen

    model = write_qwen(tmp_path / "model")
    with live(tmp_path) as url, Client(url) as client:
        client.create_run(RunBody(run="verl", model="qwen2", dtype="float32", framework="verl"))
        environment = {**os.environ, "OMNI_RL_AGENT": url, "OMNI_RL_RUN": "verl", "OMP_NUM_THREADS": "1"}
        command = [str(frameworks.python("verl")), "-m", "tests.agent.verl_run", str(model)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "not announced" not in done.stderr
        told = client.updates("verl", 100)
    assert [one.number for one in told if one.engine is None][::-1] == list(range(STEPS))
    receipts = [one for one in told if one.engine is not None][::-1]
    assert [one.of for one in receipts] == list(range(STEPS))
    for one in receipts:
        sentences = [fault.sentence for fault in one.findings]
        assert "update_weights_from_ipc" in one.how
        if one.of in SAID:
            assert any(SAID[one.of] in sentence for sentence in sentences), (one.of, sentences)
        else:
            assert (one.of, sentences, one.different) == (one.of, [], 0)
            assert one.equal > 20
