"""Measures what a fingerprint of weights costs on the CPU beside a plain sum of the same bytes, one thread, in one
run."""

import statistics
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.agent.tensors import fingerprint
from omni_rl_bench.result import Goal, write_result

MEGABYTES = 285
ROUNDS = 15
BARS = {"float32": 1.5, "bfloat16": 2.0}
"""How many times the plain sum's time a fingerprint may take, by dtype."""


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def read(words: NDArray[np.int64]) -> np.int64:
    """Return the sum of all words: what reading them costs."""
    total = np.int64(0)
    for index in range(words.size):
        total += words[index]
    return total


def bench_fingerprints(out: Path) -> Path:
    """Measure both dtypes, interleaved with the plain sum, and write `fingerprints.json` to `out`."""
    values = torch.randn(MEGABYTES * 2**18, generator=torch.Generator().manual_seed(0))
    tensors = {"float32": values, "bfloat16": values.bfloat16().repeat(2)}
    words = values.view(torch.int64).numpy()
    for tensor in tensors.values():
        fingerprint(tensor[:4096])
    read(words[:4096])
    seconds: dict[str, list[float]] = {"int64_sum": [], **{name: [] for name in tensors}}
    for _ in range(ROUNDS):
        seconds["int64_sum"].append(_timed(read, words))
        for name, tensor in tensors.items():
            seconds[name].append(_timed(fingerprint, tensor))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    goals = [
        Goal(
            f"fingerprint of {name}, times an int64 sum of the bytes",
            medians[name] / medians["int64_sum"],
            bar,
            "lower",
        )
        for name, bar in BARS.items()
    ]
    results = {"megabytes": MEGABYTES, "threads": 1, "seconds": {name: sorted(each) for name, each in seconds.items()}}
    return write_result(out / "fingerprints.json", "omni-rl bench fingerprints", goals, results)


def _timed(function: Any, data: Any) -> float:
    began = time.perf_counter()
    function(data)
    return time.perf_counter() - began
