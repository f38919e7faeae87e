"""Ends a command that an error or Ctrl-C ends: with one line that says why, and an exit code."""

import os
import sys
import threading
from typing import NoReturn

import typer

from omni_rl.errors import OmniRLError

_at_once = threading.Event()


def end_at_once() -> None:
    """Have `end` wait for no thread. Python waits for every thread of an executor, and one of a job may wait for an
    answer that comes when somebody opens the gate, which may be never."""
    _at_once.set()


def end(error: OmniRLError | KeyboardInterrupt | SystemExit) -> NoReturn:
    """End the process for an error that we raise on purpose (code 2) or for Ctrl-C (130), each with one line that says
    so, or as typer would: what it makes of Ctrl-C in a command is a `SystemExit` too."""
    code: str | int | None
    if isinstance(error, SystemExit):
        code = error.code
    elif isinstance(error, KeyboardInterrupt):
        code = 130
        typer.echo("interrupted", err=True)
    else:
        code = 2
        typer.echo(f"error [{error.code}]: {error}", err=True)
    if _at_once.is_set() and isinstance(code, int) and code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
