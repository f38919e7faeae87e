"""omni-rl up, down, status, token, sync, check, pause and resume: start and end the service on this machine, ask it and
tell it."""

import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from omni_rl.consistency.shown import mean_abs
from omni_rl.counting import counted
from omni_rl.errors import ConfigError, ServiceError
from omni_rl.settings import Transport, validated

if TYPE_CHECKING:
    from omni_rl.api.runs import RunAnswer

Directory = Annotated[Path, typer.Option(help="Where the service keeps its state.")]
AskedDirectory = Annotated[
    Path | None,
    typer.Option(help="Where the service keeps its state; OMNI_RL_URL does not count then.  \\[default: runs/up]"),
]
"""The directory of commands that ask a coordinator; None where it was not given. A bracket needs a backslash in a help
text, for Rich takes it for markup otherwise."""
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
RUNS = Path("runs/up")
TRANSPORTS = get_args(Transport)


def up(
    directory: Annotated[
        Path | None, typer.Option(help="Where the service keeps its state.  \\[default: runs/up]")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint directory.  \\[default: the small one inside]")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.  \\[default: float32]")] = None,
    replicas: Annotated[int | None, typer.Option(help="Rollout engines.  \\[default: 1]")] = None,
    world_size: Annotated[int | None, typer.Option(help="Ranks of the trainer.  \\[default: 2]")] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            help=f"How weights get to engines: {', '.join(TRANSPORTS[:-1])} or {TRANSPORTS[-1]}.  \\[default: slab]"
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The coordinator's; 0 takes any that is free.  \\[default: 8400]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; its section up is read.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start Ray, both policies and the coordinator on this machine, or what is missing of it; wait until all answer."""
    from omni_rl.config import load

    flags = {
        "directory": directory,
        "model": model,
        "dtype": dtype,
        "replicas": replicas,
        "world_size": world_size,
        "transport": transport,
        "port": port,
    }
    settings = load(config, {f"up.{name}": value for name, value in flags.items()}).up
    from omni_rl.service.tokens import owner_token
    from omni_rl.service.up import up as start

    state = start(settings, lambda line: typer.echo(line, err=True))
    answer = {"url": state.url, "run": state.name, "token_file": str(owner_token(settings.directory.resolve()))}
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        typer.echo(f"ready: {answer['url']}, run {answer['run']} (token in {answer['token_file']})")


def down(directory: Directory = RUNS, as_json: AsJson = False) -> None:
    """End every process of the service; ledger, media, tokens and logs stay."""
    from omni_rl.service.down import down as end

    count = end(directory)
    told = f"ended {counted(count, 'process', 'processes')}" if count else "nothing ran"
    typer.echo(json.dumps({"ended": count}) if as_json else told)


def status(directory: AskedDirectory = None, as_json: AsJson = False) -> None:
    """Show the state of cluster, engines and runs. Exit code 1 if not all answer, or while an incident is open."""
    with connect(directory) as client:
        state = client.state()
    if as_json:
        typer.echo(state.model_dump_json())
    else:
        cluster = state.cluster
        where = f"connected to {cluster.address}, run {cluster.run}" if cluster.connected else cluster.reason
        where = where if cluster.expected else "none: what others post is judged"
        typer.echo(f"cluster    {where}")
        holds = "; ".join(f"{hold.holder}: {hold.reason}" for hold in state.gate.holds)
        typer.echo(
            f"gate       {state.gate.gate}{'' if state.gate.confirmed else ' (not confirmed)'}  {holds}".rstrip()
        )
        for member in cluster.members:
            typer.echo(f"{member.name:<11}{member.state:<12}{member.version}  {member.detail}".rstrip())
        for one in state.incidents:
            has = f" ({one.acknowledged.by} has it in hand)" if one.acknowledged is not None else ""
            typer.echo(f"incident   {one.incident}  {one.severity}  {one.run or '-'}: {one.what}{has}")
            typer.echo(f"           {one.remedy}")
        for run in state.runs:
            typer.echo(f"run        {run.run}  {run.drift.severity}, {_doing(run)}")
    answers = state.cluster.connected or not state.cluster.expected
    raise typer.Exit(0 if answers and not state.incidents else 1)


def _doing(run: "RunAnswer") -> str:
    """Return what a run does, or since when it does nothing."""
    match run.activity:
        case "silent" | "ended":
            last = "no step" if run.sealed is None else f"step {run.step} was at {when(run.sealed)}"
            return f"{run.activity} ({last})"
        case "waiting":
            return "no step yet"
        case _:
            return f"step {run.step}"


def token(
    directory: Directory = RUNS,
    name: Annotated[str | None, typer.Option(help="Make a token for somebody of this name.")] = None,
    scope: Annotated[
        str | None, typer.Option(help="read, sync or admin; each includes the ones before it.  \\[default: read]")
    ] = None,
    remove: Annotated[str | None, typer.Option(help="Remove the token of this name.")] = None,
) -> None:
    """Print the path of the file that holds a token, the owner's or a new one; the token itself is never printed.

    A running coordinator knows a new token, and refuses a removed one, at once.
    """
    from omni_rl.api.state import Scope
    from omni_rl.service.directory import prepared
    from omni_rl.service.tokens import add_token, owner_token, remove_token

    if scope not in (None, *Scope):
        raise ConfigError(f"scope {scope!r}: read, sync or admin")
    if remove is not None and not (name is scope is None):
        raise ConfigError("--remove removes a token, and makes none: leave out --name and --scope")
    if scope is not None and name is None:
        raise ConfigError("--scope is that of a new token: say whose with --name")
    directory = prepared(directory, "--directory")
    if remove is not None:
        remove_token(directory, remove)
        typer.echo(f"removed {remove}")
        return
    typer.echo(owner_token(directory) if name is None else add_token(directory, name, Scope(scope or "read")))


def sync(
    directory: AskedDirectory = None,
    source: Annotated[
        str, typer.Option(help="trainer, published, directory or served (nothing new: dead engines are replaced).")
    ] = "trainer",
    version: Annotated[str | None, typer.Option(help="With published: what publish() returned.")] = None,
    path: Annotated[str | None, typer.Option(help="With directory: safetensors below a weight root.")] = None,
    mode: Annotated[
        str, typer.Option(help="What becomes of requests in flight: recompute, drain or keep.")
    ] = "recompute",
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Serve weights that hold NaN or infinity too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring weights to every rollout engine, proven byte by byte, and wait until all serve them."""
    body = _body("SyncBody", source=source, version=version, path=path, mode=mode, allow_nonfinite=allow_nonfinite)
    with connect(directory) as client:
        answer = client.sync(body)
    if as_json:
        typer.echo(answer.model_dump_json())
        return
    proven = f"{answer.elements_proven} of {counted(answer.elements, 'element')} proven"
    typer.echo(f"{answer.version}: {proven}, {answer.bytes} bytes")
    for sentence in answer.nonfinite:
        typer.echo(f"not finite, as allowed: {sentence}")
    typer.echo(f"stall {answer.stall:.3f} s; " + ", ".join(f"{k} {v:.3f} s" for k, v in answer.seconds.items()))
    _table(answer.agreement or {})


def check(
    directory: AskedDirectory = None,
    legs: Annotated[
        bool, typer.Option(help="Also measure what each part of the computation adds to the difference.")
    ] = True,
    reference: Annotated[
        bool, typer.Option("--reference", help="If they disagree, say which side is off float32.")
    ] = False,
    localise: Annotated[
        bool, typer.Option("--localise", help="If they disagree, name the first module that does.")
    ] = False,
    step: Annotated[str | None, typer.Option(help="Say why they disagreed in this step, RUN/ATTEMPT/STEP.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds after which the search for a cause gives up.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Compare both policies now, and name the cause if they disagree. Exit code 1 unless they agree."""
    body = _body(
        "CheckBody",
        legs=legs,
        reference=reference,
        localise=localise,
        seconds=seconds,
        **({} if step is None else step_named(step)),
    )
    with connect(directory) as client:
        answer = client.check(body)
    if as_json:
        typer.echo(answer.model_dump_json())
    else:
        typer.echo(f"{answer.severity}: {answer.reason}  {answer.sentence}".rstrip())
        _table(answer.figures)
        for leg, figures in answer.legs.items():
            typer.echo(f"{leg}: {mean_abs(figures['overall'])}")
        for finding in answer.evidence:
            typer.echo(f"{finding['check']:<18}{finding['result']:<12}{finding['sentence']}")
        if answer.cause is not None:
            typer.echo(f"cause: {answer.cause}")
    raise typer.Exit(0 if answer.severity == "ok" else 1)


def pause(
    reason: Annotated[str, typer.Argument(help="Why; everyone sees it.")],
    directory: AskedDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Stop generation between two engine steps, until somebody resumes it."""
    with connect(directory) as client:
        gate = client.pause(reason)
    typer.echo(gate.model_dump_json() if as_json else f"gate {gate.gate}")


def resume(
    run: Annotated[str | None, typer.Option(help="End the hold of this run alone.")] = None,
    directory: AskedDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Let generation go on: end the hold of a person, and that of the one run whose drift stops generation."""
    with connect(directory) as client:
        gate = client.resume(run)
    typer.echo(gate.model_dump_json() if as_json else f"gate {gate.gate}")


def connect(directory: Path | None) -> Any:
    """Return a client of the service of `directory`; if that is None, of the coordinator that the environment names, or
    else of the service of the usual directory. Where the directory has no owner's token, as after `omni-rl serve
    --token-file`, the environment's is sent. None is made: it would be an administrator's that nobody asked for."""
    from omni_rl.client.blocking import Client
    from omni_rl.service.settings import ADDRESS
    from omni_rl.service.state import ServiceState
    from omni_rl.service.tokens import OWNER, token_path

    if directory is None and os.environ.get("OMNI_RL_URL"):
        return Client()
    directory = directory or RUNS
    path = token_path(directory, OWNER)
    token = path.read_text() if path.exists() else None
    state = ServiceState.read(directory)
    if state is not None:
        return Client(state.url, token)
    try:
        url = (directory / ADDRESS).read_text()
    except FileNotFoundError:
        raise ServiceError(
            f"no service was started in {directory}; run omni-rl up or omni-rl serve, or set OMNI_RL_URL"
        ) from None
    return Client(url, token)


def when(at: float) -> str:
    """Return a time in this machine's time zone, with the zone."""
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S%z}"


def print_json(found: Sequence[Any]) -> None:
    """Print answers as one JSON list."""
    typer.echo(json.dumps([one.model_dump(mode="json") for one in found]))


def _body(kind: str, **values: Any) -> Any:
    from omni_rl.api import syncs

    return validated(getattr(syncs, kind), values)


def step_named(step: str) -> dict[str, Any]:
    """Return RUN/ATTEMPT/STEP as the fields of a check's request."""
    run, *numbers = step.rsplit("/", 2)
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ConfigError(f"step {step!r}: say RUN/ATTEMPT/STEP; the latter two are numbers")
    return {"run": run, "attempt": int(numbers[0]), "step": int(numbers[1])}


def _table(figures: Any) -> None:
    for kind, values in figures.items():
        typer.echo(f"  {kind:<8} {mean_abs(values)}")
