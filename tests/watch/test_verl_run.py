"""verl from PyPI: its V1 trainer's methods on a made-up engine's and two ranks' answers, watched without a line."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from omni_rl.api.steps import Verdict
from omni_rl.client import Client
from tests.services.live import live
from tests.watch.run_steps import ANSWERS, FAULTS, FROM
from tools import frameworks

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 6
FIRST = 3
"""The first step's number: the run goes on from a checkpoint."""
ON = "actor_rollout_ref.rollout.calculate_log_probs"
BLIND = "blind"
"""The run whose engine gives no logprobs."""
OLDER = "older"
"""The run of the trainer before V1, with a mask that is late."""


@dataclass
class Ran:
    """What verl logged of a run's steps, what the coordinator says of them, and the weights that its loss got."""

    metrics: list[dict[str, float]]
    verdicts: list[Verdict]
    weights: list[list[float]]


@dataclass
class Runs:
    """Each fault's run by its name, and what the driver of all said."""

    by_name: dict[str, Ran]
    stderr: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Runs:
    """Runs one after the other under one coordinator, with the wheel installed: verl finds our entry point by it."""
    directory = tmp_path_factory.mktemp("verl")
    told = {name: {"fault": name, "changes": [f"{ON}=True"]} for name in FAULTS}
    plan = [{"name": name, "first": FIRST, "count": STEPS, **settings} for name, settings in told.items()]
    plan.append({"name": BLIND, "first": FIRST, "count": 2, "fault": "none", "changes": [f"{ON}=False"]})
    plan.append({"name": OLDER, "first": FIRST, "count": STEPS, "fault": "late_mask", "changes": [], "v1": False})
    (directory / "plan.json").write_text(json.dumps(plan))
    with live(directory) as url:
        environment = {
            **os.environ,
            "OMNI_RL_URL": url,
            "OMNI_RL_CORRECT": "tis",
            "PYTHONPATH": f"{wheel}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
        }
        command = [str(frameworks.python("verl")), "-m", "tests.watch.verl_driver", "plan.json"]
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        weights = json.loads((directory / "weights.json").read_text())
        found = {}
        with Client(url) as client:
            judged = {run.run for run in client.runs()}
            for name in (*FAULTS, BLIND, OLDER):
                run = f"tests.{name}"
                lines = client.steps(run) if run in judged else []
                verdicts = [client.step(run, 1, line.step).verdict for line in lines]
                found[name] = Ran(logged(directory / f"{name}.jsonl"), verdicts, weights[name])
    return Runs(found, done.stderr)


def logged(path: Path) -> list[dict[str, float]]:
    """verl's own log of its metrics."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(FIRST, FIRST + len(lines)))
    return [line["data"] for line in lines]


def test_a_run_that_is_well_is_ok_in_verls_own_metrics(runs: Runs) -> None:
    ran = runs.by_name["none"]
    assert [(v.step, v.severity, v.cause) for v in ran.verdicts] == [(FIRST + n, "ok", None) for n in range(STEPS)]
    assert {v.samples for v in ran.verdicts} == {ANSWERS}
    for number, metrics in enumerate(ran.metrics, FIRST):
        assert metrics["training/rollout_probs_diff_valid"] == 1
        # The verdict is this step's; or the step before's, where the answer to the seal was still on its way.
        if "omni_rl/step" in metrics:
            assert metrics["omni_rl/step"] in (number, number - 1)
            assert metrics["omni_rl/severity"] == 0.0
    assert "omni_rl/step" in ran.metrics[1]
    assert "not watched" not in runs.stderr


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "none"])
def test_a_fault_is_seen_in_its_step_and_named(runs: Runs, fault: str) -> None:
    ran = runs.by_name[fault]
    assert [v.severity for v in ran.verdicts[:FROM]] == ["ok"] * FROM
    assert all(v.severity in ("warn", "mask", "pause") for v in ran.verdicts[FROM:])
    assert (ran.verdicts[FROM].cause, ran.verdicts[-1].cause) == FAULTS[fault]
    assert ran.metrics[-1]["omni_rl/severity"] > 0
    assert f"omni_rl/cause/{ran.verdicts[-2].cause}" in ran.metrics[-1] or (
        f"omni_rl/cause/{ran.verdicts[-1].cause}" in ran.metrics[-1]
    )


def test_weights_of_ours_reach_verls_loss(runs: Runs) -> None:
    ran = runs.by_name["temperature"]
    assert len(ran.weights) == STEPS
    assert all(0.0 <= weight <= 2.0 for step in ran.weights for weight in step)
    assert max(ran.weights[-1]) == 2.0
    assert "omni_rl/weight_mean" in ran.metrics[0]


def test_a_run_without_logprobs_says_once_what_to_set(runs: Runs) -> None:
    ran = runs.by_name[BLIND]
    assert ran.verdicts == []
    assert runs.stderr.count(f"set {ON}=True") == 1
    assert not any(name.startswith("omni_rl/") for metrics in ran.metrics for name in metrics)


def test_the_older_trainer_is_watched_too(runs: Runs) -> None:
    ran = runs.by_name[OLDER]
    assert [(v.step, v.severity) for v in ran.verdicts[:FROM]] == [(FIRST + n, "ok") for n in range(FROM)]
    assert [v.cause for v in ran.verdicts[FROM:]] == ["loss_mask"] * (STEPS - FROM)
    assert {worst.sample.split("/")[0] for worst in ran.verdicts[-1].worst} <= {str(n) for n in range(ANSWERS // 8)}
    assert ran.metrics[-1]["omni_rl/severity"] > 0


IMPORT = """
from omni_rl import torchvision_schemas
torchvision_schemas.install()
import sys
before = set(sys.modules)
import verl
import verl.utils.debug.metrics as metrics
from verl.utils.tracking import Tracking
ours = {name for name in set(sys.modules) - before if name.startswith("omni_rl")}
places = metrics.calculate_debug_metrics, Tracking.__init__, Tracking.log
wrapped = [hasattr(place, "__wrapped__") for place in places]
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
print(verl.__version__, "omni_rl.watch.verl" in ours, wrapped, callable(RayPPOTrainer._compute_old_log_prob))
"""


def imported(directory: Path, *path: Path, **variables: str) -> str:
    """What a process says that imports verl, the first one on the path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMNI_RL_")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [str(frameworks.python("verl")), "-c", IMPORT]
    done = subprocess.run(command, cwd=directory, env=environment | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_verl_without_the_variable_is_as_it_was(wheel: Path, tmp_path: Path) -> None:
    assert "0.9.1 False [False, False, False] True" in imported(tmp_path, wheel)


@pytest.mark.parametrize("version", ["0.7.1", "0.8.0"])
def test_releases_before_plug_ins_are_watched_by_one_more_variable(wheel: Path, tmp_path: Path, version: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    older = tmp_path / "verl"
    done = subprocess.run([*command, "--target", str(older), f"verl=={version}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    asked = {"OMNI_RL_URL": "http://127.0.0.1:9", "VERL_USE_EXTERNAL_MODULES": "omni_rl.verl_plugin"}
    assert f"{version} True [True, True, True] True" in imported(tmp_path, older, wheel, **asked)
