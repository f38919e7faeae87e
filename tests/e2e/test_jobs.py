"""Jobs as their operator has them: submitted, followed, killed, resumed, and drawn."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_rl.api.steps import StepLine
from omni_rl.client import Client
from omni_rl.service.state import ServiceState, marked
from omni_rl.tasks.words import FOLDER

pytestmark = pytest.mark.slow
SMALL = ["prompts=4", "group=4", "max_tokens=2", "learning_rate=0.0003", "kl=0.01"]


class Service:
    """One that is up, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answer: dict[str, str] = json.loads(self.run("up", "--port", "0", "--json").splitlines()[-1])

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "omni_rl", *arguments, "--directory", str(self.directory)],
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith(("OMNI_RL", "RAY_"))},
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def client(self) -> Client:
        return Client(self.answer["url"], Path(self.answer["token_file"]).read_text())

    def submit(self, kind: str, run: str, *values: str, follow: bool = True) -> str:
        """The job's name."""
        options = [option for value in [f"run={run}", *values] for option in ("--set", value)]
        out = self.run("submit", kind, *options, "--json", *(["--follow"] if follow else []))
        name: str = json.loads(out.splitlines()[0])["job"]
        return name


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("jobs"))
    try:
        yield service
    finally:
        service.run("down")
        assert marked(service.answer["run"]) == [], "down left processes"


def figures(steps: list[StepLine]) -> list[dict[str, Any]]:
    """What a step amounts to, but for its time and attempt."""
    return [{"step": s.step, "severity": s.severity, "training": s.training, "figures": s.figures} for s in steps]


def test_a_job_that_is_killed_and_resumed_is_bitwise_the_uninterrupted_one(service: Service, tmp_path: Path) -> None:
    values = [*SMALL, "save_every=2"]
    with service.client() as client:
        job = service.submit("grpo", "parted", *values, "steps=500", follow=False)
        while len(_steps(client, "parted")) < 3:
            assert client.job(job).status in ("pending", "running"), client.logs(job)
            time.sleep(0.2)
        client.stop_job(job)
        while client.job(job).status == "running":
            time.sleep(0.2)
        assert client.state().gate.gate == "open", "a stopped job left the engines paused"
        steps = f"steps={client.steps('parted')[-1].step + 3}"

        service.submit("grpo", "parted", *values, steps, "resume=true")
        resumed = client.steps("parted", attempt=2)
        service.submit("grpo", "whole", *values, steps)
        whole = client.steps("whole")
        assert {step.severity for step in whole} == {"ok"}
        assert resumed[0].step >= 2
        assert figures(resumed) == figures(whole[resumed[0].step :])

    drawing = tmp_path / "whole.svg"
    service.run("plot", "whole", "--out", str(drawing))
    assert drawing.read_text().startswith("<svg")


def _steps(client: Client, run: str) -> list[StepLine]:
    return client.steps(run) if run in {known.run for known in client.runs()} else []


def test_a_job_outlives_its_coordinator(service: Service) -> None:
    with service.client() as client:
        job = service.submit("grpo", "orphan", *SMALL, "steps=12", follow=False)
        while len(_steps(client, "orphan")) < 2:
            assert client.job(job).status in ("pending", "running"), client.logs(job)
            time.sleep(0.2)
        state = ServiceState.read(service.directory)
        assert state is not None
        assert state.coordinator is not None
        os.kill(state.coordinator.pid, signal.SIGKILL)
        while state.coordinator.lives:
            time.sleep(0.05)
        service.run("up")
        while client.job(job).status in ("pending", "running"):
            time.sleep(0.2)
        assert client.job(job).status == "succeeded", client.logs(job)
        assert client.run("orphan").activity == "ended"
        steps = client.steps("orphan")
    assert [(step.attempt, step.step, step.severity) for step in steps] == [(1, number, "ok") for number in range(12)]


def test_ppo_runs_ahead_and_stale_tokens_are_no_drift(service: Service) -> None:
    service.submit(
        "ppo", "stale", "prompts=8", "max_tokens=2", "steps=4", "epochs=2", "minibatches=2", "max_staleness=1"
    )
    with service.client() as client:
        steps = client.steps("stale")
    assert [step.severity for step in steps] == ["ok"] * 4
    assert any((step.training["staleness"] or 0.0) > 0 for step in steps)


@pytest.mark.parametrize("task", ["words", "halves"])
def test_sound_and_video_are_learned_from_in_agreement(service: Service, task: str) -> None:
    """With the rollout's experts replayed, on other tasks than the digits."""
    if task == "words" and not FOLDER.is_dir():
        pytest.skip("the recordings come with Debian's alsa-utils")
    run = f"of-{task}"
    service.submit("grpo", run, f"task={task}", *SMALL, "steps=2", "router_replay=true")
    with service.client() as client:
        steps = client.steps(run)
        assert [step.severity for step in steps] == ["ok"] * 2
        assert all(step.samples == 16 and step.tokens > 0 for step in steps)
        kinds = {worst.kind for worst in client.step(run, 1, 1).verdict.worst}
    assert kinds == {"audio" if task == "words" else "video"}


def test_a_job_that_cannot_run_says_why_in_its_log(service: Service) -> None:
    with service.client() as client:
        job = service.submit("grpo", "lost", "dtype=bfloat16", follow=False)
        while client.job(job).status in ("pending", "running"):
            time.sleep(0.2)
        assert client.job(job).status == "failed"
        assert "dtype bfloat16: the service has float32" in client.logs(job)
