"""Scoring speed and memory: our packed policy against transformers' on the same weights (writes `scoring.json`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from omni_rl.bench.result import BenchmarkError, Goal, write_result
from omni_rl.config import SMALL_CHECKPOINT

SPEEDUP = 2.0
MODES = ("forward", "forward+backward")
KINDS = ("text", "images")
# One thread for everybody, as a trainer rank has by default: ranks share the cores, and threads that wait for each
# other measure whatever else the machine does.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# Freed memory goes back to the system at once; the C library would keep it, and hide what comes after.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


def bench_scoring(out: Path, checkpoint: Path = SMALL_CHECKPOINT) -> Path:
    """Measure tokens per second of all methods in one process, and each one's peak memory in a process of its own."""
    timed = _worker({"checkpoint": str(checkpoint), "measure": "time"})
    memory = [
        _worker(
            {"checkpoint": str(checkpoint), "measure": "memory", "kind": kind, "mode": mode, "method": method},
            RETURN_MEMORY,
        )
        for kind in KINDS
        for mode in MODES
        for method in _one_of_each_layout(timed["timings"], kind, mode)
    ]
    goals = [
        goal
        for kind in KINDS
        for mode in MODES
        for goal in (_speedup(timed["timings"], kind, mode), _memory_ratio(memory, kind, mode))
    ]
    results = {"checkpoint": "the small one inside", "dtype": "float32", **timed, "memory": memory}
    return write_result(out / "scoring.json", "omni-rl bench scoring", goals, results)


def _worker(arguments: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    command = [sys.executable, "-m", "omni_rl.bench.scoring.worker", json.dumps(arguments)]
    variables = os.environ | ONE_THREAD | (environment or {})
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command line
    if done.returncode:
        raise BenchmarkError(f"scoring ({arguments}) ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _of(rows: list[dict[str, Any]], kind: str, mode: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind and row["mode"] == mode]


def _one_of_each_layout(timings: list[dict[str, Any]], kind: str, mode: str) -> list[dict[str, Any]]:
    """The methods whose memory is measured: of each layout the faster one."""
    fastest: dict[str, dict[str, Any]] = {}
    for row in sorted(_of(timings, kind, mode), key=lambda row: row["tokens_per_second"]):
        fastest[row["method"]["layout"]] = row["method"]
    return list(fastest.values())


def _speedup(timings: list[dict[str, Any]], kind: str, mode: str) -> Goal:
    rows = _of(timings, kind, mode)
    (ours,) = (row["tokens_per_second"] for row in rows if row["method"]["policy"] == "ours")
    theirs = max(row["tokens_per_second"] for row in rows if row["method"]["policy"] != "ours")
    return Goal(f"{kind}, {mode}: tokens/s over the best of transformers", round(ours / theirs, 3), SPEEDUP, "higher")


def _memory_ratio(memory: list[dict[str, Any]], kind: str, mode: str) -> Goal:
    peak = {row["method"]["layout"]: row["peak_bytes"] for row in _of(memory, kind, mode)}
    ratio = peak["packed"] / peak["one_by_one"]
    return Goal(f"{kind}, {mode}: peak memory over one by one", round(ratio, 3), 1.0, "lower")
