"""Compares every training side with vLLM's prefill and its decode, on the same weights (writes `agreement.json`)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omni_rl.config import SMALL_CHECKPOINT
from omni_rl_bench.result import BenchmarkError, Goal, write_result
from omni_rl_bench.scoring.command import ONE_THREAD

DTYPES = ("bfloat16", "float32")


def bench_agreement(out: Path, checkpoint: Path = SMALL_CHECKPOINT) -> Path:
    """Measure each dtype in a process of its own, with one thread for the engine and for every side."""
    results = {dtype: _worker({"checkpoint": str(checkpoint), "dtype": dtype}) for dtype in DTYPES}
    goals = [goal for dtype, measured in results.items() for goal in _goals(dtype, measured)]
    invariant = _worker({"checkpoint": str(checkpoint), "dtype": "bfloat16", "batch_invariant": True})
    results["batch_invariant"] = invariant
    goals += _goals_of_invariant(invariant["sides"]["batch_invariant"]["against_decode"])
    return write_result(out / "agreement.json", "omni-rl bench agreement", goals, results)


def _worker(arguments: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "omni_rl_bench.agreement.worker", json.dumps(arguments)]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
    if done.returncode:
        raise BenchmarkError(f"agreement ({arguments}) ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _goals(dtype: str, measured: dict[str, Any]) -> Iterator[Goal]:
    matched = measured["sides"]["matched"]
    for kind, figures in matched["probe_against_prefill"].items():
        name = f"{dtype}, matched against prefill, {kind}: max abs d on the canonical probe"
        yield Goal(name, figures["logprob_abs_diff_max"], 0.0, "lower")
    least = min(parity["equal"] for parity in measured["modules"]["matched"].values())
    yield Goal(f"{dtype}, matched: elements equal bit for bit, of the module with the fewest", least, 1.0, "higher")


def _goals_of_invariant(by_kind: dict[str, dict[str, float]]) -> Iterator[Goal]:
    for kind, figures in by_kind.items():
        name = f"bfloat16, batch_invariant against decode, {kind}: max abs d of sampled tokens"
        yield Goal(name, figures["logprob_abs_diff_max"], 0.0, "lower")
