"""What the check costs of a step: the demo's steps, posted to a coordinator as they come."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_rl.api.steps import Verdict
from omni_rl.bench.coordinator import coordinator
from omni_rl.bench.result import Goal, write_result
from omni_rl.client.blocking import Client
from omni_rl.config import DemoSettings
from omni_rl.consistency.limits import limits_for
from omni_rl.demo.display import console_for, live
from omni_rl.demo.pair import demo_pair
from omni_rl.demo.posting import Posting
from omni_rl.demo.run import PHASES, run

STEPS = 12
BAR = 0.02
LEGS = "legs"
"""Not in every step, so not a part of one here."""


class TimedPosting(Posting):
    """`seconds` from a step's records to its verdict, step by step."""

    def __init__(self, client: Client, run: str, settings: DemoSettings) -> None:
        super().__init__(client, run, settings)
        self.seconds: list[float] = []

    def check(self, step: int, records: Sequence[dict[str, Any]], training: dict[str, float]) -> Verdict:
        began = time.perf_counter()
        verdict = super().check(step, records, training)
        self.seconds.append(time.perf_counter() - began)
        return verdict


def bench_check(out: Path, *, steps: int = STEPS) -> Path:
    """Run the demo's loop with every step checked by a coordinator, and write `check.json`.

    The check is everything from a step's records to its verdict in the hands of who posted them: encoding, both
    requests, the ledger's flushes to disk. Media are uploaded for the dashboard and are not part of it.
    """
    with tempfile.TemporaryDirectory() as folder, coordinator(Path(folder)) as running, Client(running.url) as client:
        settings = DemoSettings(steps=steps, out=Path(folder))
        posting = TimedPosting(client, "bench", settings)
        with live(console_for(True), limits_for(settings.dtype), steps * PHASES) as display:
            display.phase("starting Ray, vLLM and the trainer group")
            with demo_pair(settings) as pair:
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
