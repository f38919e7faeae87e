"""omni-rl sabotage and omni-rl bench detector: how good the detector is, on a live run."""

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Add the commands."""
    app.command()(sabotage)
    bench.command("detector")(bench_detector)


def sabotage(
    fault: Annotated[str | None, typer.Option(help="Only this one.  [default: all]")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    seeds: Annotated[list[int] | None, typer.Option(help="Of weights, prompts and damage.  [default: 1]")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint directory.  [default: the small one inside]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Break a live run on purpose: is each fault noticed, called by its name, answered rightly, and mended?

    Exit code 0 if all of them are, 1 if one is not.
    """
    from omni_rl.config import load
    from omni_rl.sabotage.command import run

    settings = load(None, {"demo.model": model, "demo.dtype": dtype}).demo
    found = run(settings.model, settings.dtype, fault, seeds or [1], lambda line: typer.echo(line, err=as_json))
    if as_json:
        typer.echo(json.dumps(found))
    good = all(found[name]["share"] == 1 for name in ("recall", "right_cause", "right_action", "healed"))
    raise typer.Exit(0 if good else 1)


def bench_detector(
    out: Annotated[Path, typer.Option(help="Directory of the result files.")] = Path("bench"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each fault and dtype.")] = 2,
    clean: Annotated[int, typer.Option(min=0, help="Clean steps of each dtype.")] = 1000,
    record: Annotated[Path, typer.Option(help="What is done already; an end in the middle loses nothing.")] = Path(
        "runs/detector.jsonl"
    ),
) -> None:
    """Recall, causes, false alarms and cost of the detector (writes detector.json)."""
    from omni_rl.bench.detector import bench_detector as measure

    typer.echo(f"wrote {measure(out, seeds, clean, record, lambda line: typer.echo(line, err=True))}")
