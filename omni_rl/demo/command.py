"""`omni-rl demo` around the loop: checks, Ray's start and end, the report, and a clean Ctrl-C."""

import contextlib
import json
import sys
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from omni_rl.config import DemoSettings
from omni_rl.consistency.limits import limits_for
from omni_rl.demo.display import closing, console_for, live
from omni_rl.errors import CheckpointError

if TYPE_CHECKING:
    from omni_rl.demo.serving import Served


def run_demo(settings: DemoSettings, *, as_json: bool, serve: bool = False) -> bool:
    """Run the demo and write its report; True if every step agreed.

    `serve`: a coordinator takes its steps as they come, and stays up with them until Ctrl-C.
    """
    if not (settings.model / "config.json").is_file():
        raise CheckpointError(f"{settings.model} is not a checkpoint directory: it has no config.json")
    from omni_rl.demo.pair import demo_pair
    from omni_rl.demo.run import PHASES, run

    console = console_for(as_json)
    limits = limits_for(settings.dtype)
    with contextlib.ExitStack() as open_until_told:
        served = open_until_told.enter_context(_serving(settings)) if serve else None
        if served is not None:
            console.print(f"dashboard: {served.address}/#run={served.run}", highlight=False, soft_wrap=True)
        keeper, journal = (None, None) if served is None else (served.posting, served.journal)
        with live(console, limits, settings.steps * PHASES) as display:
            display.phase("starting Ray, vLLM and the trainer group")
            with demo_pair(settings, journal) as pair:
                report = run(settings, pair, display, keeper)
        if served is not None:
            served.posting.end()
        path = report.write(settings.out)
        closing(console, report, limits, str(path))
        if as_json:
            json.dump(report.as_dict(), sys.stdout)
            sys.stdout.write("\n")
            sys.stdout.flush()
        if served is not None:
            console.print(f"the dashboard stays at {served.address}/#run={served.run} until Ctrl-C", soft_wrap=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
    return report.agreed


def _serving(settings: DemoSettings) -> "AbstractContextManager[Served]":
    """Imported only where asked for: it needs the extra `server`."""
    from omni_rl.demo.serving import serving

    return serving(settings)
