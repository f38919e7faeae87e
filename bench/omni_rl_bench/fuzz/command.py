"""Runs `omni-rl bench fuzz`: 200,000 mutated requests, the largest valid ones, and how a coordinator takes them."""

import tempfile
from pathlib import Path

from omni_rl_bench.fuzz.large import Beside, beside_large
from omni_rl_bench.fuzz.run import WATCHED, Report, fuzz
from omni_rl_bench.fuzz.values import RUNS
from omni_rl_bench.result import Goal, write_result

GROWTH = 64.0
"""The most MiB that the coordinator's memory may grow."""
BLOCK = 100.0
"""The most milliseconds that the event loop may be blocked."""
WAIT = 500.0
"""The most milliseconds that a small request may wait."""
NO_CLUSTER = frozenset({"ray_unavailable"})
"""The codes that are right with 503: the coordinator of the benchmark has no cluster."""


def bench_fuzz(out: Path, requests: int, seed: int, first: int = 0) -> Path:
    """Send the requests, and write `fuzz.json`. `first` is the number of the first request, to send some again."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = {"ledger": f"sqlite:///{folder}/ledger.db"}
        numbers = [*range(min(RUNS, first)), *range(first, first + requests)]  # later ones name the first ones' runs
        report = fuzz(Path(folder), ledger, numbers, seed=seed, outages=NO_CLUSTER)
    with tempfile.TemporaryDirectory() as folder:
        beside = beside_large(Path(folder), WATCHED)
    command = f"omni-rl bench fuzz --requests {requests} --seed {seed}" + (f" --first {first}" if first else "")
    found = {**report.summary(), "beside_the_largest_bodies": beside.summary()}
    return write_result(out / "fuzz.json", command, [*goals(report), *goals_beside(beside)], found)


def goals(report: Report) -> list[Goal]:
    """Return the goals that hold for every number of requests."""
    return [
        Goal("answers of 500", report.count("500"), 0, "lower"),
        Goal("answers of 503 without an outage", report.count("503"), 0, "lower"),
        Goal("errors that are no problem+json", report.count("no problem"), 0, "lower"),
        Goal("requests without their answer", report.count("no answer"), 0, "lower"),
        Goal("faults in the log", len(report.logged), 0, "lower"),
        Goal("growth of resident memory, MiB", report.growth, GROWTH, "lower"),
        Goal("longest block of the event loop, ms", report.longest, BLOCK, "lower"),
    ]


def goals_beside(beside: Beside) -> list[Goal]:
    """Return the goals for the largest valid bodies."""
    p99 = beside.summary()["waits_ms"]["p99"]
    return [
        Goal("longest block of the event loop by the largest bodies, ms", beside.longest, BLOCK, "lower"),
        Goal("p99 of small requests beside the largest bodies, ms", p99, WAIT, "lower"),
    ]
