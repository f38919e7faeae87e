"""TRL's updates in a real run, of full weights and with LoRA: each fault is told of at its update, and no other is."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from omni_rl import torchvision_schemas
from omni_rl.api.runs import RunBody
from omni_rl.api.updates import UpdateAnswer
from omni_rl.client import Client
from tests.services.live import live
from tests.watch.trl_process import ENVIRONMENT, ROOT
from tools import frameworks

pytestmark = pytest.mark.slow
STEPS = 9
SAID = {
    2: "layer 1",
    4: "layers.0.self_attn.o_proj.weight is that of update ",
    6: "norm.weight is zero in the engine",
    8: "changed 0 of ",
}


def updates_of(tmp_path: Path, *, lora: bool) -> list[UpdateAnswer]:
    """The engine's updates, oldest first."""
    torchvision_schemas.install()
    from tests.watch.trl_models import write_qwen

    model = write_qwen(tmp_path / "model")
    settings = {"max_steps": STEPS, "learning_rate": 1e-2, "max_completion_length": 16}
    options = {"model": str(model), "output": str(tmp_path), "lora": lora, "settings": settings}
    with live(tmp_path) as url, Client(url) as client:
        client.create_run(RunBody(run="trl", model="qwen2", dtype="float32", framework="trl"))
        environment = {**os.environ, **ENVIRONMENT, "OMNI_RL_URL": url, "OMNI_RL_AGENT": url, "OMNI_RL_RUN": "trl"}
        command = [str(frameworks.python("trl")), "-m", "tests.agent.trl_faults", json.dumps(options)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return [one for one in client.updates("trl") if one.engine is not None][::-1]


@pytest.mark.parametrize("lora", [False, True])
def test_each_fault_of_an_update_is_told_of_at_that_update(tmp_path: Path, lora: bool) -> None:
    told = updates_of(tmp_path, lora=lora)
    assert [one.of for one in told] == list(range(1, STEPS + 1))
    for step, one in enumerate(told):  # the trainer counts its steps from 0, and its updates from 1
        sentences = [fault.sentence for fault in one.findings]
        if step in SAID:
            assert any(SAID[step] in sentence for sentence in sentences), (step, sentences)
        else:
            assert (step, sentences, one.different) == (step, [], 0)
            assert one.equal > 20
