"""omni-rl serve: the coordinator and the page alone, for runs of any framework."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    directory: Annotated[
        Path | None, typer.Option(help="Where ledger, media and tokens are kept.  \\[default: runs/serve]")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="The address to listen at; 0.0.0.0: for other machines too.  \\[default: 127.0.0.1]"),
    ] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes any that is free.  \\[default: 8400]")] = None,
    ledger: Annotated[
        str | None, typer.Option(help="A URL, postgresql://USER@HOST/DATABASE.  \\[default: a file in the directory]")
    ] = None,
    standby: Annotated[
        bool | None,
        typer.Option("--standby", help="While another coordinator keeps the ledger: wait, then go on in its place."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="The owner's token.  \\[default: one that is made in the directory]")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="A PEM file; with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="A PEM file; with --tls-certificate.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; its section serve is read.")] = None,
) -> None:
    """Run the coordinator and its page alone, until Ctrl-C: your own engine and trainer post what is judged here."""
    from omni_rl.config import load

    flags = {
        "directory": directory,
        "host": host,
        "port": port,
        "ledger": ledger,
        "standby": standby,
        "token_file": token_file,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
    }
    settings = load(config, {f"serve.{name}": value for name, value in flags.items()}).serve
    from omni_rl.service.serve import serve as run

    run(settings, typer.echo)
