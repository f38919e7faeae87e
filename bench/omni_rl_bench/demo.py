"""Runs the demo in both dtypes, and without a gap; `bench/demo.json` is where the README's table comes from."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omni_rl_bench.result import BenchmarkError, Goal, write_result

INVARIANT = "bfloat16, batch_invariant"
RUNS = {
    "float32": ("--dtype", "float32"),
    "bfloat16": ("--dtype", "bfloat16"),
    INVARIANT: ("--dtype", "bfloat16", "--numerics", "batch_invariant"),
}


def bench_demo(out: Path) -> Path:
    """Run `omni-rl demo` each way and store the reports with the wall-clock seconds of each."""
    results = {name: _run(flags) for name, flags in RUNS.items()}
    return write_result(out / "demo.json", "omni-rl bench demo", _goals(results), results)


def _run(flags: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "omni_rl", "demo", *flags, "--out", folder]
        started = time.monotonic()
        done = subprocess.run(command, check=False)  # noqa: S603 - our own command line
        seconds = time.monotonic() - started
        if done.returncode not in (0, 1):
            raise BenchmarkError(f"{' '.join(command[2:])} ended with exit code {done.returncode}")
        report = json.loads((Path(folder) / "report.json").read_text())
    return {"exit_code": done.returncode, "wall_seconds": round(seconds, 1), "report": report}


def _goals(results: dict[str, Any]) -> list[Goal]:
    """Return what the demo must reach in its worst kind of its worst step; seconds are in the results, with no goal."""
    float32, bfloat16, invariant = (results[name]["report"] for name in RUNS)
    tokens = sum(step["overall"]["tokens"] + step["overall"]["excluded_tokens"] for step in float32["steps"])
    left_out = sum(step["overall"]["excluded_tokens"] for step in float32["steps"])
    return [
        Goal("float32 logprob_abs_diff_mean", max(_figures(float32, "logprob_abs_diff_mean")), 1e-5, "lower"),
        Goal("float32 logprob_abs_diff_max", max(_figures(float32, "logprob_abs_diff_max")), 1e-4, "lower"),
        Goal("float32 share of tokens left out", left_out / tokens, 1e-3, "lower"),
        Goal("bfloat16 token_mult_prob_error", max(_figures(bfloat16, "token_mult_prob_error")), 1.05, "lower"),
        Goal(f"{INVARIANT} logprob_abs_diff_max", max(_figures(invariant, "logprob_abs_diff_max")), 0.0, "lower"),
    ]


def _figures(report: dict[str, Any], name: str) -> Iterator[float]:
    for step in report["steps"]:
        for kind in step["by_modality"].values():
            yield kind[name]
