"""omni-rl judge: steps in files, judged without a server as a coordinator would."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from omni_rl.consistency.dtypes import Dtype


def judge(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Dumps of steps, or directories of them: NeMo RL's train_data_step*.jsonl; records of the published "
            "schema as Parquet, Arrow, JSON or JSON lines. -: one dump on standard input."
        ),
    ],
    dtype: Annotated[Dtype, typer.Option(help="The dtype in which the engine computes.")] = "bfloat16",
    train_dtype: Annotated[
        Dtype | None, typer.Option(help="The dtype in which the trainer computes.  \\[default: as the engine]")
    ] = None,
    lag: Annotated[int | None, typer.Option(help="How many weight versions the engine may be behind.")] = None,
    kind: Annotated[
        str, typer.Option(help="The prompts' kind, where files do not say: text, image and so on.")
    ] = "text",
    logprobs_of: Annotated[
        Literal["processed", "raw", "unknown"] | None,
        typer.Option(help="The distribution that the engine's logprobs are of, where files do not say."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Judge steps that were written to files, and name what is wrong.

    Exit code 0 if every step is ok, 1 if one is not, 2 for files that cannot be read.
    """
    from omni_rl.commands.verdicts import verdict_line
    from omni_rl.service.judging import body_of, judge_steps
    from omni_rl.watch.readers.dumps import read_steps

    steps = list(read_steps(files, kind=kind, logprobs_of=logprobs_of))
    body = body_of(steps, dtype=dtype, train_dtype=train_dtype, lag=lag)
    ok = True
    told = []
    for step, verdict in zip(steps, judge_steps(steps, body), strict=True):
        ok &= verdict.severity == "ok"
        names = [str(path) for path in step.files]
        if as_json:
            told.append({**verdict.model_dump(mode="json"), "files": names, "notes": list(step.notes)})
            continue
        typer.echo(verdict_line(verdict))
    if as_json:
        typer.echo(json.dumps({"steps": told}))
    else:
        for note in dict.fromkeys(note for step in steps for note in step.notes):
            typer.echo(f"note: {note}", err=True)
    raise typer.Exit(0 if ok else 1)
