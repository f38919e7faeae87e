"""Defines omni-rl sabotage: what the detector makes of faults in a live service."""

import json
from pathlib import Path
from typing import Annotated

import typer

from omni_rl.runtime import prepare


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sabotage)


def sabotage(
    fault: Annotated[str | None, typer.Option(help="Only this one.  \\[default: all]")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    numerics: Annotated[str, typer.Option(help="The trainer's: reference, matched or batch_invariant.")] = "reference",
    seeds: Annotated[list[int] | None, typer.Option(help="Of weights, prompts and damage.  \\[default: 1]")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint directory.  \\[default: the small one inside]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Break a live service on purpose: is each fault noticed, called by its name, answered rightly, and healed?

    Exit code 0 if all of them are, 1 if one is not.
    """
    prepare()
    from omni_rl.config import load
    from omni_rl_bench.sabotage.command import run

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
