"""omni-rl watch: follow what a run of another framework writes, and post it to a coordinator."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from omni_rl.consistency.dtypes import Dtype
from omni_rl.kinds import KINDS

TIMEOUT = 60.0
"""Seconds that the command waits at its end for a busy coordinator to take what was read; no training run waits for
that."""

following = typer.Typer(
    help="Follow the files of a run, and post its steps to the coordinator that OMNI_RL_URL and OMNI_RL_TOKEN_FILE "
    "name; `omni-rl serve` prints both.",
    no_args_is_help=True,
)
"""The group of commands, one for each framework."""


@following.callback()
def frameworks() -> None:
    """Hold the commands in a group, which Typer would drop while it has a single command."""


@following.command("nemo-rl")
def nemo_rl(
    directory: Annotated[Path, typer.Argument(help="The run's log directory, where train_data_step*.jsonl are.")],
    run: Annotated[
        str | None, typer.Option(help="Name of the run.  \\[default: OMNI_RL_RUN, or the directory's]")
    ] = None,
    model: Annotated[str, typer.Option(help="The model's name, for people.")] = "model",
    dtype: Annotated[Dtype, typer.Option(help="The dtype in which the engine computes.")] = "bfloat16",
    train_dtype: Annotated[
        Dtype | None, typer.Option(help="The dtype in which the trainer computes.  \\[default: as the engine]")
    ] = None,
    lag: Annotated[int | None, typer.Option(help="How many weight versions the engine may be behind.")] = None,
    kind: Annotated[str, typer.Option(help="The prompts' kind: text, image and so on.")] = "text",
    logprobs_of: Annotated[
        Literal["processed", "raw", "unknown"] | None,
        typer.Option(help="The distribution that the engine's logprobs are of, as vllm_cfg.logprobs_mode says."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Post what is there, and end; exit code 1 unless all is ok.")
    ] = False,
    new_attempt: Annotated[
        bool, typer.Option("--new-attempt", help="Post everything again, in place of going on after the latest step.")
    ] = False,
    settle: Annotated[
        float, typer.Option(min=0, help="Seconds without a change after which the latest file is whole.")
    ] = 5.0,
) -> None:
    """Post the steps of a NeMo RL run as their files are written, until Ctrl-C; print a verdict for each step."""
    from omni_rl.api.steps import Verdict
    from omni_rl.client import Client
    from omni_rl.commands.verdicts import verdict_line
    from omni_rl.watch.follow_nemo_rl import Following, latest
    from omni_rl.watch.place import PostingRank, run_name
    from omni_rl.watch.watcher import Watcher

    directory = directory.resolve()
    name = run_name(run, f"{directory.parent.name}-{directory.name}")
    verdicts: list[str] = []

    def tell(verdict: Verdict) -> None:
        verdicts.append(verdict.severity)
        typer.echo(verdict_line(verdict))

    def watching(attempt: int | None) -> Watcher:
        return Watcher(
            run=name,
            model=model,
            dtype=dtype,
            train_dtype=train_dtype,
            framework="nemo-rl",
            kinds=() if kind in KINDS else (kind,),
            lag=lag,
            attempt=attempt,
            place=PostingRank(0, 1),
            timeout=TIMEOUT,
            on_verdict=tell,
        )

    with Client() as client:
        go_on = None if new_attempt else latest(client, name)
    typer.echo(f"run {name}, from {directory}" + ("" if go_on is None else f", after step {go_on[1]}"))
    followed = Following(directory, watching, lambda line: typer.echo(line, err=True), kind, logprobs_of, settle)
    try:
        lost = followed.run(go_on, lambda: once)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    raise typer.Exit(1 if lost or any(severity != "ok" for severity in verdicts) else 0)
