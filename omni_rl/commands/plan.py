"""omni-rl plan: what a sync, scoring and checking will cost on GPUs that this was never run on."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from omni_rl.commands.service import AsJson

MEASURED_HERE = Path("bench")


def plan(
    total: Annotated[float, typer.Option(help="The model's parameters, in billions.")] = 30.0,
    active: Annotated[float, typer.Option(help="The parameters that a token uses, in billions.")] = 3.0,
    gpus: Annotated[int, typer.Option(help="The number of all GPUs.")] = 8,
    rollout_share: Annotated[float, typer.Option(help="The share of the GPUs that sample.")] = 0.5,
    tensor_parallel: Annotated[int, typer.Option(help="The number of GPUs of one engine.")] = 1,
    tokens: Annotated[float, typer.Option(help="Sampled tokens a step, in millions.")] = 4.0,
    bench: Annotated[
        Path,
        typer.Option(help="Directory of measured results; where it is not there, those that came with this version."),
    ] = MEASURED_HERE,
    as_json: AsJson = False,
) -> None:
    """Estimate a step's parts on H100s, after showing how well the model tells what was measured.

    Exit code 1 if it misses a measured case by over 20 %: nothing is extrapolated then.
    """
    from omni_rl.plan.cases import TOLERANCE, cases
    from omni_rl.plan.links import H100
    from omni_rl.plan.measured import MeasuredConstants, published
    from omni_rl.plan.model import PlanSettings
    from omni_rl.plan.model import plan as estimate

    measured = MeasuredConstants.read(published() if bench == MEASURED_HERE and not bench.is_dir() else bench)
    known = cases(measured)
    missed = [case for case in known if not abs(case.error) <= TOLERANCE]
    settings = PlanSettings(
        total=total * 1e9,
        active=active * 1e9,
        gpus=gpus,
        rollout_share=rollout_share,
        tensor_parallel=tensor_parallel,
        tokens=tokens * 1e6,
    )
    found = None if missed else estimate(settings, H100, measured)
    if as_json:
        answer = {"cases": [{**asdict(case), "error": case.error} for case in known]}
        typer.echo(json.dumps(answer if found is None else {**answer, **asdict(found)}))
        raise typer.Exit(bool(missed))
    typer.echo("measured here, and what the model says")
    for case in known:
        typer.echo(f"  {case.name:<38}{case.measured:>9.3f} s {case.predicted:>9.3f} s  {case.error:+.0%}")
    if found is None:
        typer.echo(f"{missed[0].name} is missed by over {TOLERANCE:.0%}: no estimate", err=True)
        raise typer.Exit(1)
    typer.echo(f"estimate for {gpus} GPUs ({H100.name}): at best, as built, waiting for")
    for cost in found.costs:
        typer.echo(f"  {cost.part:<38}{cost.limit:>9.3f} s {cost.as_built:>9.3f} s  {cost.bound}")
    best, built = found.stall
    typer.echo(f"  {'generation stands still':<38}{best:>9.3f} s {built:>9.3f} s")
    for room in found.rooms:
        there = (
            ""
            if room.there is None
            else f" of {room.there / 1e9:.0f}" + (" NO ROOM" if room.needed > room.there else "")
        )
        typer.echo(f"  {room.what:<48}{room.needed / 1e9:>9.1f} GB{there}")
