"""Whoever follows a job sees all of its steps, and its end, whatever dies meanwhile."""

import json
from dataclasses import dataclass, field
from typing import cast

import pytest

from omni_rl.api.jobs import JobAnswer
from omni_rl.api.steps import StepLine
from omni_rl.client.blocking import Client
from omni_rl.errors import LedgerError, NotFoundError, RayUnavailableError
from omni_rl.jobs import following
from omni_rl.jobs.following import follow
from omni_rl.policies import retries


@dataclass
class Service:
    """Its bridge dies between two looks at the job, and once the ledger does not answer for its steps."""

    status: list[str] = field(default_factory=lambda: ["pending", "running", "dead", "dead", "running", "succeeded"])
    steps_done: int = 0
    ledger_away: bool = True

    def job(self, job: str) -> JobAnswer:
        status = self.status.pop(0)
        if status == "dead":
            raise RayUnavailableError("the bridge is starting")
        return answer(job, status)

    def steps(self, run: str, attempt: int | None = None, after: int | None = None) -> list[StepLine]:
        if self.steps_done and self.ledger_away:
            self.ledger_away = False
            raise LedgerError("the disk is full")
        self.steps_done += 1
        if self.steps_done == 1:
            raise NotFoundError("there is no run digits")
        return [line(1, self.steps_done - 2, 101.0)]


@dataclass
class Resumed:
    """The job resumes, at step 1, a run whose first attempt got to step 2."""

    looks: int = 0

    def job(self, job: str) -> JobAnswer:
        self.looks += 1
        return answer(job, "running" if self.looks < 5 else "succeeded")

    def steps(self, run: str, attempt: int | None = None, after: int | None = None) -> list[StepLine]:
        lines = [line(1, step, 90.0) for step in range(3)]
        lines += [line(2, step, 100.0 + step) for step in range(1, 4)[: max(self.looks - 2, 0)]]
        asked = lines[-1].attempt if attempt is None else attempt
        return [one for one in lines if one.attempt == asked and (after is None or one.step > after)]


def answer(job: str, status: str) -> JobAnswer:
    parameters = {"run": "digits", "steps": 3}
    return JobAnswer.model_validate(
        {"job": job, "kind": "grpo", "status": status, "submitted": 100.0, "parameters": parameters}
    )


def line(attempt: int, step: int, sealed: float) -> StepLine:
    return StepLine.model_construct(attempt=attempt, step=step, sealed=sealed, severity="ok", training={"loss": None})


def test_a_bridge_that_dies_and_a_disk_that_is_full_end_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_resumed_job_shows_the_steps_of_its_own_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.0)
    lines: list[str] = []
    follow(cast(Client, Resumed()), "grpo-2", lines.append)
    shown = [json.loads(text) for text in lines]
    assert [(one["attempt"], one["step"]) for one in shown] == [(2, 1), (2, 2), (2, 3)]
