"""omni-rl submit, run and plot: training jobs."""

import json
from typing import Annotated, Any

import typer

from omni_rl.errors import ConfigError

KINDS = ("grpo", "ppo")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (run,):
        app.command()(command)


def run(
    kind: Annotated[str, typer.Argument(help="grpo or ppo.")],
    parameters: Annotated[str, typer.Option(help="The job's parameters, one JSON object.")] = "{}",
) -> None:
    """Run a job here, in a process that Ray started: what `ray job submit` is given. One line of JSON a step."""
    chosen = _parameters(kind, parameters)
    from omni_rl.jobs.command import print_line, run_job

    run_job(chosen, print_line)


def _parameters(kind: str, text: str) -> Any:
    from pydantic import ValidationError

    from omni_rl.api.jobs import GrpoParameters, PpoParameters
    from omni_rl.settings import describe

    if kind not in KINDS:
        raise ConfigError(f"job {kind!r}: there are {' and '.join(KINDS)}")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--parameters is not JSON: {error}") from None
    model = GrpoParameters if kind == "grpo" else PpoParameters
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None
