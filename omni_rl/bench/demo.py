"""The demo in both dtypes, as a user runs it; `bench/demo.json` is where the README's table comes from."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omni_rl.bench.result import BenchmarkError, Goal, write_result

DTYPES = ("float32", "bfloat16")


def bench_demo(out: Path) -> Path:
    """Run `omni-rl demo` once a dtype and keep both reports with the wall-clock seconds of each."""
    results = {dtype: _run(dtype) for dtype in DTYPES}
    return write_result(out / "demo.json", "omni-rl bench demo", _goals(results), results)


def _run(dtype: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "omni_rl", "demo", "--dtype", dtype, "--out", folder]
        started = time.monotonic()
        done = subprocess.run(command, check=False)  # noqa: S603 - our own command line
        seconds = time.monotonic() - started
        if done.returncode not in (0, 1):
            raise BenchmarkError(f"{' '.join(command[2:])} ended with exit code {done.returncode}")
        report = json.loads((Path(folder) / "report.json").read_text())
    return {"exit_code": done.returncode, "wall_seconds": round(seconds, 1), "report": report}


def _goals(results: dict[str, Any]) -> list[Goal]:
    """What the demo has to reach in its worst kind of its worst step; seconds are in the results, with no goal."""
    float32, bfloat16 = (results[dtype]["report"] for dtype in DTYPES)
    tokens = sum(step["overall"]["tokens"] + step["overall"]["excluded_tokens"] for step in float32["steps"])
    left_out = sum(step["overall"]["excluded_tokens"] for step in float32["steps"])
    return [
        Goal("float32 logprob_abs_diff_mean", max(_figures(float32, "logprob_abs_diff_mean")), 1e-5, "lower"),
        Goal("float32 logprob_abs_diff_max", max(_figures(float32, "logprob_abs_diff_max")), 1e-4, "lower"),
        Goal("float32 share of tokens left out", left_out / tokens, 1e-3, "lower"),
        Goal("bfloat16 token_mult_prob_error", max(_figures(bfloat16, "token_mult_prob_error")), 1.05, "lower"),
    ]


def _figures(report: dict[str, Any], name: str) -> Iterator[float]:
    for step in report["steps"]:
        for kind in step["by_modality"].values():
            yield kind[name]
