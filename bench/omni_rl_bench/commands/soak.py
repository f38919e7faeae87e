"""Defines omni-rl soak: a service under load, with one fault after the other."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(soak)


def soak(
    minutes: Annotated[float, typer.Option(min=1, help="How long at least: until every fault was met once.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of what is posted, and of which fault strikes when.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory of the result file.")] = Path("bench"),
) -> None:
    """Load every endpoint, with jobs, syncs and faults, in a service of its own, as root (writes soak.json).

    Processes are stopped and killed, disks filled, and the clock is set. Exit code 1 if anything was lost, failed, grew
    or became slow, or did not come back.
    """
    import json

    from omni_rl_bench.soak.command import soak as run

    path = run(out, minutes, seed, lambda line: typer.echo(line, err=True))
    goals = json.loads(path.read_text())["goals"]
    for goal in goals:
        bound = "at least" if goal["better"] == "higher" else "at most"
        met = "ok  " if goal["met"] else "FAIL"
        typer.echo(f"{met}  {goal['name']}: {goal['value']:.4g} ({bound} {goal['bar']:g})")
    typer.echo(f"wrote {path}")
    raise typer.Exit(0 if all(goal["met"] for goal in goals) else 1)
