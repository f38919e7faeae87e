"""Runs `omni-rl demo`: checks, Ray's start and end around the loop, the report, and a clean Ctrl-C."""

import contextlib
import json
import sys
import threading

from omni_rl.config import DemoSettings
from omni_rl.consistency.limits import limits_for
from omni_rl.demo.display import closing, console_for, live
from omni_rl.demo.interrupt import interruptible
from omni_rl.errors import CheckpointError

ATTEMPT = 1


def run_demo(settings: DemoSettings, *, as_json: bool, serve: bool = False) -> bool:
    """Run the demo, write its report, and return whether every step agreed.

    With `serve`, a coordinator takes the steps as they come and goes on serving them until Ctrl-C.

    Raises `CheckpointError` if the settings' model is not a checkpoint directory.
    """
    if not (settings.model / "config.json").is_file():
        raise CheckpointError(f"{settings.model} is not a checkpoint directory: it has no config.json")
    from omni_rl.demo.pair import demo_pair
    from omni_rl.demo.run import run
    from omni_rl.jobs.posting import Posting

    console = console_for(as_json)
    limits = limits_for(settings.dtype)
    with contextlib.ExitStack() as open_until_told:
        served = None
        if serve:
            from omni_rl.demo.serving import serving  # it needs the extra `server`

            served = open_until_told.enter_context(serving(settings))
            console.print(f"dashboard: {served.address}/#run={served.run}", highlight=False, soft_wrap=True)
        journal = None if served is None else served.journal
        with (
            interruptible() as check,
            live(console, limits, settings.steps) as display,
            demo_pair(settings, journal) as pair,
        ):
            posting = None if served is None else Posting(served.client, served.run, ATTEMPT, pair.decode)
            report = run(settings, pair, display, posting, check)
        if posting is not None:
            posting.end()
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
