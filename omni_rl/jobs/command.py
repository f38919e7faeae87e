"""Runs `omni-rl run`, the entry point of every job."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from omni_rl.api.jobs import GrpoParameters, PpoParameters
from omni_rl.api.runs import RunBody
from omni_rl.errors import ConfigError
from omni_rl.jobs.saved import SavedSteps
from omni_rl.tasks.settings import load_task

if TYPE_CHECKING:
    from omni_rl.api.steps import Verdict
    from omni_rl.jobs.loop import StepDone

Parameters = GrpoParameters | PpoParameters


def run_job(parameters: Parameters, tell: "Callable[[StepDone[Verdict]], None]") -> None:
    """Run a job in the service that the environment names; `tell` is called with each step when it is done.

    Raises:
        ConfigError: the task cannot be run, the service has another dtype, another job has the policies, or the run
            exists or cannot be resumed; all of these before the trainer is changed.
    """
    task = load_task(parameters.task)
    from omni_rl.jobs.attached import AttachedRun, create_run
    from omni_rl.jobs.claim import claimed
    from omni_rl.jobs.environment import TaskEnvironment
    from omni_rl.jobs.grpo import Grpo
    from omni_rl.jobs.loop import REFERENCE, Loop, LoopSettings
    from omni_rl.jobs.ppo import Ppo
    from omni_rl.policies.attach import attach

    saved = SavedSteps(parameters.run)
    kind = "grpo" if isinstance(parameters, GrpoParameters) else "ppo"
    algorithm = Grpo(parameters) if isinstance(parameters, GrpoParameters) else Ppo(parameters)
    with attach() as policies, claimed(policies.run, parameters.run):
        served = policies.settings
        if served.dtype != parameters.dtype:
            raise ConfigError(f"dtype {parameters.dtype}: the service has {served.dtype}; ask for that")
        body = RunBody(
            run=parameters.run,
            model=served.model.name,
            dtype=parameters.dtype,
            gated=True,
            limits=parameters.limits,
            correction=parameters.correction,
        )
        attempt, has_steps = create_run(policies, body)
        if has_steps and not parameters.resume:
            raise ConfigError(f"run {parameters.run} was there before: choose another name, or resume it")
        # The snapshots of a job that was killed. What that job had begun, a save for one, is done by then.
        policies.trainer.drop_snapshot()
        first, state = saved.resume(kind, parameters) if parameters.resume else (0, None)
        if state is None:
            saved.begin(kind, parameters)
        if state is None or parameters.kl > 0:
            policies.trainer.reset()
        if parameters.kl > 0:
            policies.trainer.take_snapshot(REFERENCE)
        if state is not None:
            policies.trainer.load(state)
        run = AttachedRun(policies, parameters.run, attempt, saved)
        environment = TaskEnvironment(parameters, task, algorithm.answers_per_prompt)
        loop = Loop(LoopSettings.of(parameters), environment, algorithm, policies, run, save=run.save)
        for done in loop.run(first):
            tell(done)
        run.end()


def as_line(done: "StepDone[Verdict]") -> str:
    """Return a step as one line of JSON."""
    return json.dumps(
        {
            "step": done.step,
            "severity": done.verdict.severity,
            "reason": done.verdict.reason,
            **{name: round(value, 6) for name, value in done.figures.items()},
            "dropped": list(done.dropped),
            "seconds": {phase: round(value, 3) for phase, value in done.seconds.items()},
        }
    )


def print_line(done: "StepDone[Verdict]") -> None:
    sys.stdout.write(as_line(done) + "\n")
    sys.stdout.flush()
