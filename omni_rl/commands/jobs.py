"""omni-rl submit, jobs, stop, run and plot: training jobs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omni_rl.commands.ending import end_at_once
from omni_rl.commands.service import AsJson, AskedDirectory, connect, print_json
from omni_rl.errors import ConfigError
from omni_rl.files.toml import read_toml
from omni_rl.runtime import prepare
from omni_rl.settings import validated

if TYPE_CHECKING:
    from omni_rl.api.steps import StepLine
    from omni_rl.client.blocking import Client

KINDS = ("grpo", "ppo")
Kind = Annotated[str, typer.Argument(help="grpo or ppo.")]


def submit(
    kind: Kind,
    config: Annotated[Path | None, typer.Option(help="TOML file of the job's parameters.")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter, name=value; it replaces the file's.")
    ] = None,
    directory: AskedDirectory = None,
    follow: Annotated[bool, typer.Option(help="Show its steps until it ends; exit code 1 if it fails.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job to the service, which runs it on its Ray cluster."""
    chosen = _parameters(kind, ({} if config is None else read_toml(config)) | _from_flags(values or []))
    with connect(directory) as client:
        job = client.submit(chosen)
        typer.echo(job.model_dump_json() if as_json else f"submitted {job.job}: run {chosen.run}")
        if not follow:
            return
        from omni_rl.jobs.following import follow as watch

        try:
            ended = watch(client, job.job, typer.echo if as_json else None)
        except KeyboardInterrupt:
            typer.echo(f"{job.job} goes on; omni-rl stop {job.job} ends it", err=True)
            raise
    if ended.status != "succeeded":
        typer.echo(f"{ended.job} {ended.status}: {ended.message}", err=True)
        raise typer.Exit(1)


def jobs(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List at most so many.")] = 20,
    directory: AskedDirectory = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs of the service, the newest first."""
    with connect(directory) as client:
        found = client.jobs(limit)
    if as_json:
        print_json(found)
        return
    for job in found:
        typer.echo(f"{job.job}  {job.kind}  {job.status}  {job.message}".rstrip())
    if not found:
        typer.echo("no job")


def stop(
    job: Annotated[str, typer.Argument(help="The job's name, as omni-rl jobs lists it.")],
    directory: AskedDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Stop a job of the service; what it has saved stays."""
    with connect(directory) as client:
        ended = client.stop_job(job)
    typer.echo(ended.model_dump_json() if as_json else f"{ended.job} {ended.status}")


def run(
    kind: Kind,
    parameters: Annotated[str, typer.Option(help="The job's parameters, one JSON object.")] = "{}",
) -> None:
    """Run a job in this process: what Ray starts for a submission. One line of JSON a step."""
    try:
        values = json.loads(parameters)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--parameters is not JSON: {error}") from None
    chosen = _parameters(kind, values)
    prepare()
    from omni_rl.jobs.command import print_line, run_job

    end_at_once()
    run_job(chosen, print_line)


def plot(
    run: Annotated[str, typer.Argument(help="The run's name.")],
    out: Annotated[Path | None, typer.Option(help="File to write.  \\[default: RUN.svg]")] = None,
    directory: AskedDirectory = None,
) -> None:
    """Draw a run's reward, and how far the policies were apart, as an SVG file."""
    from omni_rl.jobs.plot import plot as draw

    with connect(directory) as client:
        steps = _all_steps(client, run)
    if not steps:
        raise ConfigError(f"run {run} has no sealed step to draw")
    path = out or Path(f"{run}.svg")
    path.write_text(draw(run, steps))
    typer.echo(f"wrote {path}")


def _all_steps(client: "Client", run: str) -> "list[StepLine]":
    """Return every step of the run's latest attempt; the coordinator gives a part of many at a time."""
    steps = part = client.steps(run)
    while part:
        part = client.steps(run, attempt=steps[-1].attempt, after=steps[-1].step)
        steps = steps + part
    return steps


def _from_flags(values: list[str]) -> dict[str, Any]:
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise ConfigError(f"--set {value!r}: write name=value")
        found[name] = text
    return found


def _parameters(kind: str, values: Any) -> Any:
    from omni_rl.api.jobs import GrpoParameters, PpoParameters

    if kind not in KINDS:
        raise ConfigError(f"job {kind!r}: there are {' and '.join(KINDS)}")
    return validated(GrpoParameters if kind == "grpo" else PpoParameters, values)
