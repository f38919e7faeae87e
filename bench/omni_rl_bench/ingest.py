"""Measures the way from a rank's logprobs to a verdict, through HTTP: tokens a second on one core, and whether the API
stays responsive."""

import os
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from omni_rl.kinds import KINDS
from omni_rl.ledger.schema import SCHEMA
from omni_rl.ledger.wire import as_stream
from omni_rl_bench.coordinator import Running, coordinator
from omni_rl_bench.processor import processor_seconds
from omni_rl_bench.result import Goal, write_result

BAR = 2e6
RANKS = 8
SHAPES = ((256, 1024), (2048, 128), (8192, 32))
"""Samples of a rank, and tokens of a sample: as many tokens in each shape, in fewer and fewer pieces. The goal must be
met by the slowest."""
STEPS = 8
ARROW = "application/vnd.apache.arrow.stream"
PROBE_SECONDS = 0.02
"""The seconds between two requests to /healthz meanwhile."""


@dataclass
class Awake:
    """The seconds that /healthz took while records came in; the slowest show how long the event loop stood still."""

    url: str
    seconds: list[float] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        with httpx.Client(base_url=self.url) as http:
            while not self.ended.wait(PROBE_SECONDS):
                began = time.perf_counter()
                http.get("/healthz").raise_for_status()
                self.seconds.append(time.perf_counter() - began)


def bench_ingest(out: Path, *, steps: int = STEPS, ranks: int = RANKS) -> Path:
    """Start a coordinator on one core, post `steps` steps of five kinds and of each shape from another, and write
    `ingest.json`.

    `tokens_per_cpu_second` counts the coordinator's own processor time, so that what else runs on the machine does not
    count against it; `tokens_per_second` is by the clock.
    """
    core = min(os.sched_getaffinity(0))
    shapes = []
    for samples, tokens in SHAPES:
        with tempfile.TemporaryDirectory() as folder, coordinator(Path(folder), core=core) as running:
            shapes.append({"tokens_per_sample": tokens, **_measure(running, steps, ranks, samples, tokens)})
    slowest = min(shape["tokens_per_cpu_second"] for shape in shapes)
    goals = [Goal("tokens per second of one core, ingest to verdict", slowest, BAR, "higher")]
    return write_result(out / "ingest.json", "omni-rl bench ingest", goals, {**shapes[0], "shapes": shapes})


def _measure(running: Running, steps: int, ranks: int, samples: int, length: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    bodies = [_part(rng, rank, samples, length) for rank in range(ranks)]
    tokens = ranks * samples * length
    clock, spent, parts, seals = [], [], [], []
    with httpx.Client(base_url=running.url, timeout=120) as http:
        run = {"run": "bench", "model": "none", "dtype": "bfloat16"}
        http.post("/v1/runs", json=run).raise_for_status()
        awake = Awake(running.url)
        watcher = threading.Thread(target=awake.watch)
        watcher.start()
        try:
            for step in range(steps):
                path = f"/v1/runs/bench/attempts/1/steps/{step}"
                cpu, began = processor_seconds(running.pid), time.perf_counter()
                for rank, body in enumerate(bodies):
                    http.put(f"{path}/parts/{rank}", content=body, headers={"Content-Type": ARROW}).raise_for_status()
                posted = time.perf_counter()
                http.post(f"{path}/seal", json={"parts": ranks}, headers={"Accept": ARROW}).raise_for_status()
                clock.append(time.perf_counter() - began)
                spent.append(processor_seconds(running.pid) - cpu)
                parts.append(posted - began)
                seals.append(clock[-1] - parts[-1])
        finally:
            awake.ended.set()
            watcher.join()
    # The first step pays for what is loaded and allocated once.
    return {
        "tokens_per_step": tokens,
        "bytes_per_token": round(sum(map(len, bodies)) / tokens, 1),
        "ranks": ranks,
        "steps": steps,
        "tokens_per_cpu_second": round(tokens / statistics.median(spent[1:])),
        "tokens_per_second": round(tokens / min(clock[1:])),
        "seconds": {
            "step_median": round(statistics.median(clock[1:]), 3),
            "step_min": round(min(clock[1:]), 3),
            "parts_min": round(min(parts[1:]), 3),
            "seal_min": round(min(seals[1:]), 3),
        },
        "healthz_meanwhile_seconds": {
            "p50": round(float(np.percentile(awake.seconds, 50)), 4),
            "p99": round(float(np.percentile(awake.seconds, 99)), 4),
        },
    }


def _part(rng: np.random.Generator, rank: int, samples: int, length: int) -> bytes:
    """Return an Arrow stream of a rank's records: ids and both logprobs, in float64."""
    count = samples * length
    rollout = -rng.exponential(1.0, count)
    train = np.minimum(rollout + rng.normal(0.0, 0.01, count), 0.0)
    offsets = pa.array(np.arange(0, count + 1, length), pa.int32())
    columns = {
        "sample": pa.array([f"{rank}/{number}" for number in range(samples)]),
        "kind": pa.array([KINDS[number % len(KINDS)] for number in range(samples)]),
        "prompt_tokens": pa.array([64] * samples, pa.int32()),
        "ids": pa.ListArray.from_arrays(offsets, pa.array(rng.integers(0, 131_072, count, np.int32))),
        "rollout_logprobs": pa.ListArray.from_arrays(offsets, pa.array(rollout)),
        "train_logprobs": pa.ListArray.from_arrays(offsets, pa.array(train)),
    }
    return as_stream(pa.table(columns).replace_schema_metadata(SCHEMA.metadata))
