"""The demo's pair as a driver of its own has it: engine and ranks compute in one environment, whatever the driver's is,
and weights that never arrived are noticed."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from omni_rl.runtime import ENVIRONMENT

pytestmark = pytest.mark.slow

CHOSEN = {"TOKENIZERS_PARALLELISM": "true"}
DRIVER = """
import json, os

from omni_rl.config import SMALL_CHECKPOINT, DemoSettings
from omni_rl.demo.pair import demo_pair
from omni_rl.demo.run import run
from omni_rl.media.types import Prompt
from omni_rl.rollout.types import SamplingSettings

class Lines:
    steps = []

    def phase(self, step, phase): ...
    def step(self, report):
        self.steps.append(report)

def found(_):
    import torch

    compiled = []
    torch.compile(torch.add, backend=lambda graph, _: compiled.append(1) or graph)(torch.ones(1), 1)
    return [dict(os.environ), len(compiled)]

settings = DemoSettings(steps=2, prompts_per_kind=2, model=SMALL_CHECKPOINT)
with demo_pair(settings) as pair:
    answers = pair.sample(pair.render([Prompt("a", "hello")]), SamplingSettings(max_tokens=4))
    apart = max(abs(pair.trainer.score(answers)[0].logprobs - answers[0].logprobs))
    (engine,) = pair.rollouts
    sides = [engine.between_steps(found), *pair.trainer.on_ranks(found)]
    pair.sync = lambda: None
    report = run(settings, pair, Lines())
told = {
    "verdicts": [step.verdict for step in Lines.steps],
    "agreed": report.agreed,
    "breaches": report.steps[1].breaches,
}
print(json.dumps({"sides": sides, "driver": dict(os.environ), "apart": float(apart), "stale": told}))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what a driver found whose environment has none of ours: of its actors, and of a demo whose syncs move
    nothing."""
    bare = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT} | CHOSEN
    folder = tmp_path_factory.mktemp("driver")
    done = subprocess.run([sys.executable, "-c", DRIVER], capture_output=True, text=True, env=bare, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_actors_have_it_and_the_driver_does_not(driver: Any) -> None:
    wanted = {name: variable.value for name, variable in ENVIRONMENT.items()} | CHOSEN
    assert len(driver["sides"]) == 3
    for environment, compiled in driver["sides"]:
        assert wanted == {name: environment.get(name) for name in wanted}
        assert compiled == 0
        assert "OMNI_RL_ENGINE" not in environment
    assert {name: driver["driver"][name] for name in wanted if name in driver["driver"]} == CHOSEN
    assert driver["apart"] < 1e-4


def test_weights_that_never_arrived_are_noticed(driver: Any) -> None:
    """A sync that reports success and moves nothing: the fault that the demo exists to catch."""
    stale = driver["stale"]
    assert stale["verdicts"] == ["agree", "disagree"]
    assert not stale["agreed"]
    # Versions give it away at once; without them the logprobs, or routers that part by more than a tie, would.
    assert any("logprob_abs_diff" in breach or "flip_margin_max" in breach for breach in stale["breaches"])
    assert any("sampled under demo-" in breach for breach in stale["breaches"])
