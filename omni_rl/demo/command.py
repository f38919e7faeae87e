"""`omni-rl demo` around the loop: checks, Ray's start and end, the report, and a clean Ctrl-C."""

import json
import sys

from omni_rl.config import DemoSettings
from omni_rl.consistency.thresholds import THRESHOLDS
from omni_rl.demo.display import closing, console_for, live
from omni_rl.errors import CheckpointError


def run_demo(settings: DemoSettings, *, as_json: bool) -> bool:
    """Run the demo and write its report; True if every step agreed."""
    if not (settings.model / "config.json").is_file():
        raise CheckpointError(f"{settings.model} is not a checkpoint directory: it has no config.json")
    from omni_rl.demo.cluster import Cluster
    from omni_rl.demo.run import PHASES, run

    console = console_for(as_json)
    limits = THRESHOLDS[settings.dtype]
    with live(console, limits, settings.steps * PHASES) as display:
        display.phase("starting Ray, vLLM and the trainer group")
        with Cluster(settings) as cluster:
            report = run(settings, cluster, display)
    path = report.write(settings.out)
    closing(console, report, limits, str(path))
    if as_json:
        json.dump(report.as_dict(), sys.stdout)
        sys.stdout.write("\n")
    return report.agreed
