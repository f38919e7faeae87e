"""Defines omni-rl bench detector: how many faults are noticed and named, and how many false alarms there are."""

from pathlib import Path
from typing import Annotated

import typer


def register(bench: typer.Typer) -> None:
    """Add the command."""
    bench.command("detector")(bench_detector)


def bench_detector(
    out: Annotated[Path, typer.Option(help="Directory of the result files.")] = Path("bench"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each fault and dtype.")] = 2,
    clean: Annotated[int, typer.Option(min=0, help="Clean steps of each dtype.")] = 1000,
    record: Annotated[Path, typer.Option(help="What is done already; an end in the middle loses nothing.")] = Path(
        "runs/detector.jsonl"
    ),
) -> None:
    """Measure what the service notices of faults and calls them, and false alarms (writes detector.json)."""
    from omni_rl_bench.detector import bench_detector as measure

    typer.echo(f"wrote {measure(out, seeds, clean, record, lambda line: typer.echo(line, err=True))}")
