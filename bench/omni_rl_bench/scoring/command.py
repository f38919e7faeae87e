"""Compares scoring speed and memory: our packed policy with transformers' on the same weights (writes
`scoring.json`)."""

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omni_rl.config import SMALL_CHECKPOINT
from omni_rl_bench.result import BenchmarkError, Goal, write_result

SPEEDUP = 2.0
# One thread for everybody, as a trainer rank has by default: ranks share the cores, and threads that wait for each
# other measure whatever else the machine does.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# Freed memory goes back to the system at once; the C library would keep it, and hide what comes after.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


def bench_scoring(out: Path, checkpoint: Path = SMALL_CHECKPOINT) -> Path:
    """Measure speeds in one process, and the peak memory of ours and of the one-by-one loop in a process each."""
    timed = _worker({"checkpoint": str(checkpoint), "measure": "time"})
    asked = [
        {"checkpoint": str(checkpoint), "measure": "memory", "kind": row["kind"], "mode": row["mode"], "method": method}
        for row in timed["timings"]
        for method in (_ours(row)["method"], _best_one_by_one(row))
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # memory does not depend on what runs beside
        memory = list(pool.map(lambda arguments: _worker(arguments, RETURN_MEMORY), asked))
    goals = [goal for row in timed["timings"] for goal in (_speedup(row), _memory_ratio(memory, row))]
    results = {"checkpoint": "the small one inside", "dtype": "float32", **timed, "memory": memory}
    return write_result(out / "scoring.json", "omni-rl bench scoring", goals, results)


def _worker(arguments: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    command = [sys.executable, "-m", "omni_rl_bench.scoring.worker", json.dumps(arguments)]
    variables = os.environ | ONE_THREAD | (environment or {})
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command line
    if done.returncode:
        raise BenchmarkError(f"scoring ({arguments}) ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _ours(timing: dict[str, Any]) -> dict[str, Any]:
    (measured,) = (measured for measured in timing["measured"] if measured["method"]["policy"] == "ours")
    return dict(measured)


def _best_one_by_one(timing: dict[str, Any]) -> dict[str, Any]:
    methods = [row["method"] for row in timing["screened"]]  # fastest first
    return next(dict(method) for method in methods if method["layout"] == "one_by_one")


def _speedup(timing: dict[str, Any]) -> Goal:
    """Return the lowest of the ratios to each rival, each the median of the rounds' ratios.

    The ratios are of processor seconds: with one thread they are those of the clock on a machine that does nothing
    else, and on any other they leave out what was taken away.
    """
    ours = [seconds["processor"] for seconds in _ours(timing)["rounds"]]
    ratios = [
        statistics.median(theirs["processor"] / mine for theirs, mine in zip(rival["rounds"], ours, strict=True))
        for rival in timing["measured"]
        if rival["method"]["policy"] != "ours"
    ]
    name = f"{timing['kind']}, {timing['mode']}: tokens/s over the best of transformers"
    return Goal(name, round(min(ratios), 3), SPEEDUP, "higher")


def _memory_ratio(memory: list[dict[str, Any]], timing: dict[str, Any]) -> Goal:
    kind, mode = timing["kind"], timing["mode"]
    peak = {row["method"]["layout"]: row["peak_bytes"] for row in memory if (row["kind"], row["mode"]) == (kind, mode)}
    ratio = peak["packed"] / peak["one_by_one"]
    return Goal(f"{kind}, {mode}: peak memory over one by one", round(ratio, 3), 1.0, "lower")
