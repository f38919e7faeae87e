"""omni-rl bundle, omni-rl sabotage and omni-rl bench detector: one failure in a file, and how good the detector is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from omni_rl.commands.service import RUNS, Directory, connect, step_named
from omni_rl.runtime import prepare


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Add the commands."""
    app.command()(bundle)
    app.command()(sabotage)
    bench.command("detector")(bench_detector)


def bundle(
    step: Annotated[str, typer.Argument(help="RUN/ATTEMPT/STEP.")],
    out: Annotated[Path, typer.Option(help="The zip file to write.")] = Path("sample.zip"),
    sample: Annotated[str | None, typer.Option(help="Name of the sample.  [default: the step's worst]")] = None,
    check: Annotated[bool, typer.Option(help="Also have both policies compared now, module by module.")] = True,
    directory: Directory = RUNS,
) -> None:
    """Save a failing sample with its media, versions and digests, to be looked into elsewhere."""
    from omni_rl.client.bundle import bundle as save

    named = step_named(step)
    with connect(directory) as client:
        where = save(client, named["run"], int(named["attempt"]), int(named["step"]), sample, out, check=check)
    typer.echo(f"wrote {where}")


def sabotage(
    fault: Annotated[str | None, typer.Option(help="Only this one.  [default: all]")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    numerics: Annotated[str, typer.Option(help="The trainer's: reference, matched or batch_invariant.")] = "reference",
    seeds: Annotated[list[int] | None, typer.Option(help="Of weights, prompts and damage.  [default: 1]")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint directory.  [default: the small one inside]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Break a live service on purpose: is each fault noticed, called by its name, answered rightly, and healed?

    Exit code 0 if all of them are, 1 if one is not.
    """
    prepare()
    from omni_rl.config import load
    from omni_rl.sabotage.command import run

    settings = load(None, {"demo.model": model, "demo.dtype": dtype, "demo.numerics": numerics}).demo
    found = run(
        settings.model,
        settings.dtype,
        settings.numerics,
        fault,
        seeds or [1],
        lambda line: typer.echo(line, err=as_json),
    )
    if as_json:
        typer.echo(json.dumps(found))
    good = all(found[name]["share"] == 1 for name in ("noticed", "right_cause", "right_action", "healed"))
    raise typer.Exit(0 if good else 1)


def bench_detector(
    out: Annotated[Path, typer.Option(help="Directory of the result files.")] = Path("bench"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each fault and dtype.")] = 2,
    clean: Annotated[int, typer.Option(min=0, help="Clean steps of each dtype.")] = 1000,
    record: Annotated[Path, typer.Option(help="What is done already; an end in the middle loses nothing.")] = Path(
        "runs/detector.jsonl"
    ),
) -> None:
    """What the service notices of faults, what it calls them and does; and false alarms (writes detector.json)."""
    from omni_rl.bench.detector import bench_detector as measure

    typer.echo(f"wrote {measure(out, seeds, clean, record, lambda line: typer.echo(line, err=True))}")
