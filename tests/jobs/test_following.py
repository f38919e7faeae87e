"""Whoever follows a job sees all of its steps, and its end, whatever dies meanwhile."""

from dataclasses import dataclass, field
from typing import cast

import pytest

from omni_rl.api.jobs import JobAnswer
from omni_rl.api.steps import StepLine
from omni_rl.client.blocking import Client
from omni_rl.errors import NotFoundError, RayUnavailableError
from omni_rl.jobs import following
from omni_rl.jobs.following import follow
from omni_rl.policies import retries


@dataclass
class Service:
    """Its bridge dies between two looks at the job."""

    status: list[str] = field(default_factory=lambda: ["pending", "running", "dead", "dead", "running", "succeeded"])
    steps_done: int = 0

    def job(self, job: str) -> JobAnswer:
        status = self.status.pop(0)
        if status == "dead":
            raise RayUnavailableError("the bridge is starting")
        parameters = {"run": "digits", "steps": 3}
        return JobAnswer.model_validate({"job": job, "kind": "grpo", "status": status, "parameters": parameters})

    def steps(self, run: str, after: int | None) -> list[StepLine]:
        self.steps_done += 1
        if self.steps_done == 1:
            raise NotFoundError("there is no run digits")
        number = self.steps_done - 2
        return [StepLine.model_construct(attempt=1, step=number, severity="ok", training={"loss": None})]


def test_a_bridge_that_dies_ends_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.0)
    lines: list[str] = []
    assert follow(cast(Client, Service()), "grpo-1", lines.append).status == "succeeded"
    assert len(lines) == 2


def test_a_loss_that_is_no_number_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(retries, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.0)
    follow(cast(Client, Service()), "grpo-1", None)
    assert "step 0  ok  loss not a number" in capsys.readouterr().err
