"""omni-rl incidents, incident, runs and export: what needs a person, read from a service, or from a ledger while no
service runs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omni_rl.commands.service import RUNS, AsJson, AskedDirectory, Directory, connect, print_json, when
from omni_rl.consistency.shown import shown
from omni_rl.errors import ConfigError

if TYPE_CHECKING:
    from omni_rl.api.incidents import FigureAnswer, IncidentAnswer
    from omni_rl.api.runs import RunLine
    from omni_rl.ledger.ledger import Ledger

OfLedger = Annotated[
    str | None,
    typer.Option(help="Read this ledger instead of asking a service: sqlite:///FILE, or postgresql+psycopg://…"),
]


def incidents(
    everything: Annotated[bool, typer.Option("--all", help="List ended incidents too.")] = False,
    run: Annotated[str | None, typer.Option(help="List the incidents of this run alone.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="List one kind alone: drift, update, sync, engine or silence.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List at most so many.")] = 100,
    directory: AskedDirectory = None,
    ledger: OfLedger = None,
    as_json: AsJson = False,
) -> None:
    """List what a person has to look at, the newest first. Exit code 1 while one is open."""
    from omni_rl.consistency.incidents import KINDS

    if kind is not None and kind not in KINDS:
        raise ConfigError(f"kind {kind!r}: {', '.join(KINDS)}")
    is_open = None if everything else True
    if ledger is None:
        with connect(directory) as client:
            found = client.incidents(limit, is_open=is_open, run=run, kind=kind)
    else:
        found = _read(ledger, lambda read: read.incidents(limit, is_open=is_open, run=run, kind=kind))
    if as_json:
        print_json(found)
    else:
        for one in found:
            typer.echo(_incident_line(one))
        if not found:
            typer.echo("none" if everything else "none is open")
    raise typer.Exit(1 if any(one.ended is None for one in found) else 0)


def incident(
    number: Annotated[int, typer.Argument(min=1, help="The incident's number.")],
    acknowledge: Annotated[bool, typer.Option("--acknowledge", help="Say that you have the incident in hand.")] = False,
    note: Annotated[str | None, typer.Option(help="Add this note to the incident.")] = None,
    end: Annotated[bool, typer.Option("--end", help="End the incident; its run is judged afresh.")] = False,
    directory: AskedDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Show an incident: its story, what to do, and what was done. Take it, write to it or end it."""
    with connect(directory) as client:
        found = client.incident(number)
        if acknowledge:
            found = client.acknowledge(number)
        if note is not None:
            found = client.note(number, note)
        if end:
            found = client.end_incident(number)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    typer.echo(_incident_line(found))
    if found.ended is None:
        typer.echo(f"  what to do: {found.remedy} ({found.guide})")
    for done in found.actions:
        typer.echo(f"  {when(done.at)}  {done.what}")
    for written in found.notes:
        typer.echo(f"  {when(written.at)}  {written.by}: {written.text}")


def runs(
    search: Annotated[str, typer.Option(help="List runs with this in their names.")] = "",
    need: Annotated[
        list[str] | None, typer.Option(help="List runs of this need, such as halted, silent or ok; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List at most so many.")] = 100,
    directory: AskedDirectory = None,
    ledger: OfLedger = None,
    as_json: AsJson = False,
) -> None:
    """List runs, those that need a person first."""
    from omni_rl.consistency.need import NAMES

    if unknown := set(need or ()) - set(NAMES):
        raise ConfigError(f"need {', '.join(sorted(unknown))}: {', '.join(reversed(NAMES))}")
    if ledger is None:
        with connect(directory) as client:
            found = client.runs(limit, search=search, needs=need or (), sort="need")
    else:
        found = _read(ledger, lambda read: read.runs(limit, search=search, needs=need or (), sort="need"))
    if as_json:
        print_json(found)
        return
    width = max((len(run.run) for run in found), default=0)
    for run in found:
        typer.echo(f"{run.need or 'unknown':<10}{run.run:<{width}}  {_about(run)}".rstrip())
    if not found:
        typer.echo("no run")


def export(
    run: Annotated[str, typer.Argument(help="The run's name.")],
    out: Annotated[Path | None, typer.Option(help="Directory to write.  \\[default: RUN]")] = None,
    directory: Directory = RUNS,
    ledger: OfLedger = None,
    as_json: AsJson = False,
) -> None:
    """Write a run as Parquet files, straight from the ledger: no service has to run."""
    from omni_rl.ledger.export import export as write

    with _opened(ledger or f"sqlite:///{directory / 'ledger.db'}") as found:
        paths = write(found, run, out or Path(run))
    if as_json:
        typer.echo(json.dumps([str(path) for path in paths]))
    else:
        typer.echo("\n".join(f"wrote {path}" for path in paths))


def _read(url: str, query: Callable[[Any], Sequence[Any]]) -> Sequence[Any]:
    from omni_rl_services.coordinator.reading import Reading

    with _opened(url) as found:
        return query(Reading(found))


def _opened(url: str) -> "Ledger":
    """Open a ledger that exists; where the name is misspelt, none is made."""
    from omni_rl.ledger.ledger import Ledger

    file = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not file.exists():
        raise ConfigError(f"ledger {file} is not there; name it with --ledger sqlite:///FILE")
    return Ledger.open(url)


def _incident_line(one: "IncidentAnswer") -> str:
    state = "over" if one.ended is not None else one.severity
    has = f" ({one.acknowledged.by} has it in hand)" if one.acknowledged is not None and one.ended is None else ""
    return f"{one.incident:<5}{state:<6}{one.run or '-'}  {one.kind}, since {when(one.opened)}{has}: {one.what}"


def _about(run: "RunLine") -> str:
    parts = ["no step yet" if run.sealed is None else f"step {run.step} at {when(run.sealed)}"]
    parts += [] if run.figure is None else [_figure(run.figure)]
    parts += [] if run.cause is None else [run.cause]
    parts += [] if run.good is None or run.need in ("ok", "ended") else [f"clean to step {run.good.step}"]
    parts += [] if run.acknowledged is None else [f"{run.acknowledged.by} has it in hand"]
    return ", ".join(parts)


def _figure(figure: "FigureAnswer") -> str:
    return f"{figure.kind}: {figure.metric} {shown(figure.value, '.3g')}, limit {figure.limit:g}"
