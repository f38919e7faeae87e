"""The `omni-rl` command. Options are parsed before anything heavy is imported."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from omni_rl import __version__
from omni_rl.commands import incidents, jobs, judge, plan, replay, sabotage, serve, service, soak, watch
from omni_rl.errors import NotInstalledError, OmniRLError
from omni_rl.runtime import prepare

PAIR = {"av", "numba", "PIL", "ray", "safetensors", "sklearn", "skimage", "skvideo", "tokenizers", "torch", "vllm"}
"""Imported by what hosts engines, trainers and jobs; the package is installed without them."""

app = typer.Typer(
    help="Keeps an RL run honest: vLLM rollouts against an FSDP copy of the same Nemotron Omni.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point: errors we raise on purpose end as one line, Ctrl-C as exit code 130."""
    try:
        try:
            app()
        except ModuleNotFoundError as error:
            raise _not_installed(error) from None
    except OmniRLError as error:
        typer.echo(f"error [{error.code}]: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


def _not_installed(error: ModuleNotFoundError) -> Exception:
    """What a light installation lacks, by name; the error itself where it is of something else."""
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
    """Shared options."""


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False) -> None:
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
    model: Annotated[Path | None, typer.Option(help="Checkpoint directory.  [default: the small one inside]")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.  [default: float32]")] = None,
    numerics: Annotated[
        str | None,
        typer.Option(help="The trainer's: reference, matched or batch_invariant.  [default: reference]"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to run.  [default: 6]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of prompts and sampling.  [default: 0]")] = None,
    out: Annotated[Path | None, typer.Option(help="Where report.json goes.  [default: runs/demo]")] = None,
    replicas: Annotated[int | None, typer.Option(help="Engines that share the prompts.  [default: 1]")] = None,
    nodes: Annotated[int | None, typer.Option(help="Ray nodes, all on this machine.  [default: 1]")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; its section demo is read.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report on standard output, the rest aside.")
    ] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Show it in the dashboard, which stays until Ctrl-C.")] = False,
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


serve.register(app)
judge.register(app)
watch.register(app)
service.register(app)
incidents.register(app)
jobs.register(app)
plan.register(app)

bench = typer.Typer(help="Measure; each benchmark writes one file.", no_args_is_help=True)
bench.callback()(prepare)
app.add_typer(bench, name="bench")
sabotage.register(app, bench)
soak.register(app)
replay.register(app)
BenchOut = Annotated[Path, typer.Option(help="Directory of the result files.")]


@bench.command("demo")
def bench_demo(out: BenchOut = Path("bench")) -> None:
    """The demo in float32, bfloat16, and bfloat16 with batch-invariant numerics (writes demo.json)."""
    from omni_rl.bench.demo import bench_demo as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("sync")
def bench_sync(
    out: BenchOut = Path("bench"),
    megabytes: Annotated[
        list[int] | None, typer.Option(help="Size of the weights, 50 or 1000.  [default: both]")
    ] = None,
    syncs: Annotated[int, typer.Option(min=2, help="Syncs at each size.")] = 30,
) -> None:
    """Weight syncs against a plain copy, saving and reloading, and Ray's object store (writes sync.json)."""
    from omni_rl.bench.sync import bench_sync as measure

    typer.echo(f"wrote {measure(out, megabytes or [50, 1000], syncs, lambda line: typer.echo(line, err=True))}")


@bench.command("scoring")
def bench_scoring(out: BenchOut = Path("bench")) -> None:
    """Scoring speed and memory against transformers on the same weights (writes scoring.json)."""
    from omni_rl.bench.scoring.command import bench_scoring as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("ingest")
def bench_ingest(out: BenchOut = Path("bench")) -> None:
    """A step's logprobs through HTTP to a verdict, on one core (writes ingest.json)."""
    from omni_rl.bench.ingest import bench_ingest as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("stalls")
def bench_stalls(out: BenchOut = Path("bench")) -> None:
    """What 200 clients that stall cost 50 that post (writes stalls.json)."""
    from omni_rl.bench.stalls import bench_stalls as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("watch")
def bench_watch(out: BenchOut = Path("bench")) -> None:
    """What a watched run's own thread pays for a step (writes watch.json)."""
    from omni_rl.bench.watch import bench_watch as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("fingerprints")
def bench_fingerprints(out: BenchOut = Path("bench")) -> None:
    """A fingerprint of weights beside a plain sum of the same bytes (writes fingerprints.json)."""
    from omni_rl.bench.fingerprints import bench_fingerprints as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("announcing")
def bench_announcing(out: BenchOut = Path("bench")) -> None:
    """What a TRL run's own thread pays for announcing its updates (writes announcing.json); needs TRL."""
    from omni_rl.bench.announcing import bench_announcing as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("check")
def bench_check(out: BenchOut = Path("bench")) -> None:
    """What the check costs of the demo's step (writes check.json)."""
    from omni_rl.bench.check import bench_check as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("replicas")
def bench_replicas(
    out: BenchOut = Path("bench"),
    rounds: Annotated[int, typer.Option(min=1, help="Of both sides, in turns.")] = 9,
) -> None:
    """The same steps sampled by one replica and by two (writes replicas.json)."""
    from omni_rl.bench.replicas import bench_replicas as measure

    typer.echo(f"wrote {measure(out, rounds, lambda line: typer.echo(line, err=True))}")


@bench.command("dashboard")
def bench_dashboard(out: BenchOut = Path("bench")) -> None:
    """The dashboard on a million steps, in Chromium (writes dashboard.json)."""
    from omni_rl.bench.dashboard import bench_dashboard as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("agreement")
def bench_agreement(out: BenchOut = Path("bench")) -> None:
    """The trainer's numerics and transformers against vLLM's prefill and decode (writes agreement.json)."""
    from omni_rl.bench.agreement.command import bench_agreement as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("operators")
def bench_operators(out: BenchOut = Path("bench")) -> None:
    """vLLM's CPU operators for decoding against its own for prefill (writes operators.json)."""
    from omni_rl.bench.agreement.operators import bench_operators as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("judging")
def bench_judging(out: BenchOut = Path("bench")) -> None:
    """What the judge says of 4,000 posted steps where nothing is wrong, four minutes (writes judging.json)."""
    from omni_rl.bench.judging.command import bench_judging as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("learning")
def bench_learning(
    out: BenchOut = Path("bench"),
    seed: Annotated[list[int] | None, typer.Option(help="Seeds.  [default: 0, 1 and 2]")] = None,
    case: Annotated[list[str] | None, typer.Option(help="As grpo, ppo, grpo-rate-0.  [default: all]")] = None,
    parts: Annotated[Path, typer.Option(help="Finished runs, which are not run again.")] = Path("runs/learning"),
) -> None:
    """Whether GRPO and PPO learn digits, and controls do not: 90 minutes, no part of `all` (writes learning.json)."""
    from omni_rl.bench.learning.command import bench_learning as measure

    path = measure(out, seed or [0, 1, 2], case or [], parts, lambda line: typer.echo(line, err=True))
    typer.echo(f"wrote {path}")


@bench.command("gpu")
def bench_gpu(
    out: BenchOut = Path("bench"),
    part: Annotated[list[str] | None, typer.Option(help="As agreement, trainer, scoring.  [default: all]")] = None,
) -> None:
    """Training copy and trainer on a CUDA device against the CPU, no part of `all` (writes gpu.json)."""
    from omni_rl.bench.gpu.command import bench_gpu as measure

    typer.echo(f"wrote {measure(out, part or [], lambda line: typer.echo(line, err=True))}")


@bench.command("goals")
def bench_goals(out: BenchOut = Path("bench")) -> None:
    """The goals of every result file, and whether they are met."""
    from omni_rl.bench.result import goal_lines

    typer.echo("\n".join(goal_lines(out)))


@bench.command("all")
def bench_all(out: BenchOut = Path("bench")) -> None:
    """Every benchmark, one after the other, and a table of their goals."""
    bench_demo(out)
    bench_sync(out)
    bench_scoring(out)
    bench_ingest(out)
    bench_stalls(out)
    bench_watch(out)
    bench_judging(out)
    bench_fingerprints(out)
    bench_check(out)
    bench_replicas(out)
    bench_dashboard(out)
    bench_agreement(out)
    bench_operators(out)
    bench_goals(out)
