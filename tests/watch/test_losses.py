"""Losses that watch: called on two ranks as prime-rl's, Miles's and slime's trainers call them."""

import json
import os
from pathlib import Path

import pytest

from omni_rl.api.steps import Verdict
from omni_rl.client import Client
from tests.nursery import said_by, shared, torchrun
from tests.services.live import live
from tests.watch.run_steps import ANSWERS, FAULTS, FROM

TRAINER = "tests.watch.loss_trainer"
IMPORTED = (TRAINER, "torch._dynamo", "omni_rl.watch.miles")
RANKS = 2
STEPS = 6


def verdicts(directory: Path, framework: str, fault: str, steps: int = STEPS) -> list[Verdict]:
    """Of a run in two processes."""
    plan, log = directory / "plan.json", directory / "run.log"
    plan.write_text(json.dumps({"framework": framework, "fault": fault, "steps": steps}))
    with live(directory) as url:
        environment = os.environ | {"OMNI_RL_URL": url, "OMNI_RL_RUN": "run"}
        said = said_by(torchrun(shared(*IMPORTED), log, RANKS, TRAINER, [str(plan)], environment), log)
        assert "not watched" not in said, said[-3000:]
        with Client(url) as client:
            return [client.step("run", 1, line.step).verdict for line in client.steps("run")]


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["prime-rl", "miles", "slime"])
def test_a_run_that_is_well_is_ok_at_every_step(tmp_path: Path, framework: str) -> None:
    found = verdicts(tmp_path, framework, "none")
    assert [(v.step, v.severity, v.cause) for v in found] == [(n, "ok", None) for n in range(STEPS)]
    assert {v.samples for v in found} == {ANSWERS}  # each answer once, whoever has copies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("framework", "fault"),
    [
        ("prime-rl", "stale_weights"),
        ("prime-rl", "temperature"),
        ("prime-rl", "late_mask"),
        ("prime-rl", "nan"),
        ("miles", "late_mask"),
    ],
)
def test_a_fault_is_seen_in_its_step_and_named(tmp_path: Path, framework: str, fault: str) -> None:
    found = verdicts(tmp_path, framework, fault)
    assert [v.severity for v in found[:FROM]] == ["ok"] * FROM
    assert all(v.severity in ("warn", "mask", "pause") for v in found[FROM:])
    assert (found[FROM].cause, found[-1].cause) == FAULTS[fault]
