"""omni-rl replay: puts a bundle's sample through both policies again, on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from omni_rl.commands.service import AsJson
from omni_rl.rollout.settings import Dtype, require_checkpoint
from omni_rl.runtime import prepare


def replay(
    bundle: Annotated[Path, typer.Argument(help="The zip file that omni-rl bundle wrote.")],
    model: Annotated[Path, typer.Option(help="Checkpoint directory, for both policies.")],
    dtype: Annotated[Dtype, typer.Option(help="The dtype in which both compute.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Put a bundle's sample through a vLLM engine and a trainer that are started here, and compare with the record.

    Exit code 0 if the two policies agree now, 1 if they do not.
    """
    from omni_rl.replay.reading import read_bundle

    found = read_bundle(bundle)
    require_checkpoint(model)
    prepare()
    import pydantic_core

    from omni_rl.replay.report import lines
    from omni_rl.replay.run import replay as compare
    from omni_rl.replay.run import replay_pair

    typer.echo("starting Ray, vLLM and the trainer", err=True)
    with replay_pair(model, dtype, len(found.prompt_ids) + len(found.ids)) as pair:
        result = compare(found, pair)
    if as_json:
        typer.echo(pydantic_core.to_json(result, inf_nan_mode="null").decode())
    else:
        typer.echo("\n".join(lines(result)))
    raise typer.Exit(0 if result.agree else 1)
