"""Defines the commands that run from a checkout alone; `omni_rl.commands.checkout` adds them to `omni-rl`."""

import typer

from omni_rl_bench.commands import detector, sabotage, soak
from omni_rl_bench.commands.bench import bench


def register(app: typer.Typer) -> None:
    """Add the commands."""
    detector.register(bench)
    app.add_typer(bench, name="bench")
    sabotage.register(app)
    soak.register(app)
