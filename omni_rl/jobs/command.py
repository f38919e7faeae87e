"""`omni-rl run`: the entry point of every job."""

import json
import sys
from collections.abc import Callable

from omni_rl.api.jobs import GrpoParameters, PpoParameters
from omni_rl.api.runs import RunBody
from omni_rl.errors import ConfigError
from omni_rl.jobs.loop import StepDone
from omni_rl.tasks.settings import load_task

Parameters = GrpoParameters | PpoParameters


def run_job(parameters: Parameters, tell: Callable[[StepDone], None]) -> None:
    """Run a job in the service that the environment names; `tell` gets each step.

    Raises:
        ConfigError: before any actor is asked for anything: a task that cannot be run, another dtype than is served.
    """
    task = load_task(parameters.task)
    from omni_rl.bridge.attach import attach
    from omni_rl.jobs.attached import Attached, create_run
    from omni_rl.jobs.grpo import Grpo
    from omni_rl.jobs.loop import Loop
    from omni_rl.jobs.ppo import Ppo

    algorithm = Grpo(parameters) if isinstance(parameters, GrpoParameters) else Ppo(parameters)
    with attach() as policies:
        served = policies.rollout.settings
        if served.dtype != parameters.dtype:
            raise ConfigError(f"dtype {parameters.dtype}: the service has {served.dtype}; ask for that")
        body = RunBody(
            run=parameters.run,
            model=served.model.name,
            dtype=parameters.dtype,
            gated=True,
            correction=parameters.correction,
        )
        attempt = create_run(policies, body)
        attached = Attached(policies, parameters.run, attempt)
        policies.trainer.reset()
        attached.sync(-1)
        for done in Loop(parameters, task, algorithm, attached).run():
            tell(done)


def as_line(done: StepDone) -> str:
    """A step as one line of JSON."""
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


def print_line(done: StepDone) -> None:
    sys.stdout.write(as_line(done) + "\n")
    sys.stdout.flush()
