"""omni-rl bundle: saves one failing sample in a file."""

from pathlib import Path
from typing import Annotated

import typer

from omni_rl.commands.service import AskedDirectory, connect, step_named


def bundle(
    step: Annotated[str, typer.Argument(help="RUN/ATTEMPT/STEP.")],
    out: Annotated[Path, typer.Option(help="The zip file to write.")] = Path("sample.zip"),
    sample: Annotated[str | None, typer.Option(help="Name of the sample.  \\[default: the step's worst]")] = None,
    check: Annotated[bool, typer.Option(help="Also have both policies compared now, module by module.")] = True,
    directory: AskedDirectory = None,
) -> None:
    """Save a failing sample with its media, versions and digests, to be looked into elsewhere."""
    from omni_rl.client.bundle import bundle as save

    named = step_named(step)
    with connect(directory) as client:
        where = save(client, named["run"], named["attempt"], named["step"], sample, out, check=check)
    typer.echo(f"wrote {where}")
