"""Measures what the check costs of a step: the demo's steps, posted to a coordinator as they come."""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_rl.api.runs import RunBody
from omni_rl.client.blocking import Client
from omni_rl.client.sealed import Sealed
from omni_rl.config import DemoSettings
from omni_rl.consistency.limits import limits_for
from omni_rl.demo.display import console_for, live
from omni_rl.demo.pair import demo_pair
from omni_rl.demo.run import run
from omni_rl.jobs.posting import Posting
from omni_rl_bench.coordinator import coordinator
from omni_rl_bench.result import Goal, write_result

STEPS = 12
BAR = 0.02
LEGS = "legs"
"""The name of a part that is not in every step, and so is not counted here."""


class TimedPosting(Posting):
    """Posts, and notes in `seconds` the time from a step's records to its verdict, step by step."""

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self.seconds: list[float] = []

    def seal(self, step: int, records: Sequence[Mapping[str, Any]], training: Mapping[str, float]) -> Sealed:
        began = time.perf_counter()
        sealed = super().seal(step, records, training)
        self.seconds.append(time.perf_counter() - began)
        return sealed


def bench_check(out: Path, *, steps: int = STEPS) -> Path:
    """Run the demo's loop with every step checked by a coordinator, and write `check.json`.

    The check is everything from a step's records to its verdict in the hands of the process that posted them: encoding,
    both requests, the ledger's flushes to disk. Media are uploaded for the dashboard and are not part of it.
    """
    with tempfile.TemporaryDirectory() as folder, coordinator(Path(folder)) as running, Client(running.url) as client:
        settings = DemoSettings(steps=steps, out=Path(folder))
        client.create_run(RunBody(run="bench", model=settings.model.name, dtype=settings.dtype))
        with live(console_for(True), limits_for(settings.dtype), steps) as display, demo_pair(settings) as pair:
            posting = TimedPosting(client, "bench", 1, pair.decode)
            report = run(settings, pair, display, posting)
    # The first step pays for what is loaded once, the last one does not learn.
    took = [sum(seconds for phase, seconds in step.seconds.items() if phase != LEGS) for step in report.steps]
    step, check = statistics.median(took[1:-1]), statistics.median(posting.seconds[1:-1])
    figures = {
        "steps": steps,
        "tokens_per_step": report.steps[0].overall.metrics.tokens,
        "step_seconds": {"median": step, "each": took},
        "check_seconds": {"median": check, "each": posting.seconds},
    }
    goals = [Goal("check, share of the demo's step (medians)", check / step, BAR, "lower")]
    return write_result(out / "check.json", "omni-rl bench check", goals, figures)
