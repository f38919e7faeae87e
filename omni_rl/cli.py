"""The `omni-rl` command. Options are parsed before anything heavy is imported."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from omni_rl import __version__
from omni_rl.commands import bundle, checkout, incidents, jobs, judge, plan, replay, serve, service, watch
from omni_rl.commands.ending import end
from omni_rl.errors import NotInstalledError, OmniRLError
from omni_rl.runtime import prepare

PAIR = {"av", "numba", "PIL", "ray", "safetensors", "skimage", "skvideo", "tokenizers", "torch", "vllm"}
"""The packages that engines, trainers and jobs import; a light installation of this package does not have them."""

app = typer.Typer(
    help="Keeps an RL run honest: vLLM rollouts against an FSDP copy of the same Nemotron Omni.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command. An error that we raise on purpose ends it with one line, Ctrl-C with exit code 130."""
    try:
        try:
            app()
        except ModuleNotFoundError as error:
            raise _not_installed(error) from None
    except (OmniRLError, KeyboardInterrupt, SystemExit) as error:
        end(error)


def _not_installed(error: ModuleNotFoundError) -> Exception:
    """Return an error that names the package which a light installation lacks, or `error` itself if another module is
    missing."""
    name = (error.name or "").partition(".")[0]
    if name not in PAIR:
        return error
    return NotInstalledError(
        f"this command needs {name}, which is part of our own pair of policies: run make setup in a checkout. Serving, "
        "judging and watching runs of yours need nothing more than what is installed"
    )


def _print_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Take the options that come before every command."""


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False) -> None:
    """Print versions, CPU flags, what is missing and the fix. Exit code 1 if something needed is missing."""
    from omni_rl.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        width = max(len(finding.item) for finding in findings)
        for finding in findings:
            fix = f"  -> {finding.fix}" if finding.fix else ""
            typer.echo(f"{finding.level:<8}{finding.item:<{width}}  {finding.detail}{fix}")
    raise typer.Exit(any(finding.level == "missing" for finding in findings))


@app.command("make-checkpoint")
def make_checkpoint(
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    seed: Annotated[int, typer.Option(help="Seed of weights, order of training and tokenizer.")] = 0,
    force: Annotated[bool, typer.Option(help="Write into a directory that is not empty.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Make the small Omni that the demo and the tests use: seeded, and trained on digits until it is half right."""
    prepare()
    from omni_rl.checkpoints.make import make_checkpoint as make

    figures = make(out, seed=seed, force=force, progress=lambda line: typer.echo(line, err=True))
    typer.echo(json.dumps(asdict(figures)) if as_json else f"wrote {out}: {asdict(figures)}")


@app.command()
def demo(
    model: Annotated[Path | None, typer.Option(help="Checkpoint directory.  \\[default: the small one inside]")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.  \\[default: float32]")] = None,
    numerics: Annotated[
        str | None,
        typer.Option(help="The trainer's numerics: reference, matched, batch_invariant.  \\[default: reference]"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to run.  \\[default: 6]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of prompts and sampling.  \\[default: 0]")] = None,
    out: Annotated[Path | None, typer.Option(help="Where report.json goes.  \\[default: runs/demo]")] = None,
    replicas: Annotated[int | None, typer.Option(help="Engines that share the prompts.  \\[default: 1]")] = None,
    nodes: Annotated[int | None, typer.Option(help="Ray nodes, all on this machine.  \\[default: 1]")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; its section demo is read.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report on standard output, all else on standard error.")
    ] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Show it in the dashboard, which runs until Ctrl-C.")] = False,
) -> None:
    """Run the main job: sample with vLLM, rescore with an FSDP2 copy, learn, update, and agree again.

    Exit code 0 if every step agreed, 1 if one did not, 2 for a bad setting.
    """
    from omni_rl.config import load

    flags = {"model": model, "dtype": dtype, "numerics": numerics, "steps": steps, "seed": seed, "out": out}
    flags |= {"replicas": replicas, "nodes.count": nodes}
    settings = load(config, {f"demo.{name}": value for name, value in flags.items()}).demo
    prepare()
    from omni_rl.demo.command import run_demo

    raise typer.Exit(0 if run_demo(settings, as_json=as_json, serve=serve) else 1)


app.add_typer(watch.following, name="watch")
for command in (
    serve.serve,
    judge.judge,
    service.up,
    service.down,
    service.status,
    service.token,
    service.sync,
    service.check,
    service.pause,
    service.resume,
    incidents.incidents,
    incidents.incident,
    incidents.runs,
    incidents.export,
    jobs.submit,
    jobs.jobs,
    jobs.stop,
    jobs.run,
    jobs.plot,
    plan.plan,
    bundle.bundle,
):
    app.command()(command)
checkout.register(app)
app.command()(replay.replay)
