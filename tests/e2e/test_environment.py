"""Engine and ranks compute in one environment, whatever the driver's is, and the driver keeps its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni_rl.runtime import ENVIRONMENT

pytestmark = pytest.mark.slow

DRIVER = """
import json, os, sys
from pathlib import Path

import ray

from omni_rl.media.types import Prompt
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings

def found(_):
    import torch

    compiled = []
    torch.compile(torch.add, backend=lambda graph, _: compiled.append(1) or graph)(torch.ones(1), 1)
    return [dict(os.environ), len(compiled)]

model = Path(sys.argv[1])
ray.init(address="local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
with (
    RolloutHandle.start(EngineSettings(model=model)) as engine,
    TrainerGroup.start(model, TrainSettings(world_size=1), "run") as trainer,
):
    answers = engine.sample(engine.render([Prompt("a", "hello")]), SamplingSettings(max_tokens=4))
    apart = max(abs(trainer.score(answers)[0].logprobs - answers[0].logprobs))
    sides = [engine.between_steps(found), *trainer.on_ranks(found)]
ray.shutdown()
print(json.dumps([sides, dict(os.environ), float(apart)]))
"""


def test_actors_have_it_and_the_driver_does_not(small_checkpoint: Path, tmp_path: Path) -> None:
    chosen = {"TOKENIZERS_PARALLELISM": "true"}
    bare = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT} | chosen
    command = [sys.executable, "-c", DRIVER, str(small_checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, env=bare, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    sides, driver, apart = json.loads(done.stdout.splitlines()[-1])
    wanted = {name: variable.value for name, variable in ENVIRONMENT.items()} | chosen
    for environment, compiled in sides:
        assert wanted == {name: environment.get(name) for name in wanted}
        assert compiled == 0
        assert "OMNI_RL_ENGINE" not in environment
    assert chosen == {name: driver[name] for name in wanted if name in driver}
    assert apart < 1e-4
