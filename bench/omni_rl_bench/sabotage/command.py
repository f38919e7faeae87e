"""Runs `omni-rl sabotage` without the command line around it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_rl.rollout.settings import Dtype
from omni_rl.settings import Numerics
from omni_rl_bench.sabotage.faults import chosen
from omni_rl_bench.sabotage.figures import figures
from omni_rl_bench.sabotage.rig import Pair, Say
from omni_rl_bench.sabotage.suite import Record, sweep


def run(
    model: Path, dtype: Dtype, numerics: Numerics, fault: str | None, seeds: Sequence[int], say: Say
) -> dict[str, Any]:
    """Return every trial, and the figures of all. Raises `ConfigError` for a fault that does not exist."""
    faults = chosen(fault)
    with tempfile.TemporaryDirectory() as folder:
        record = Record(Path(folder) / "trials.jsonl")
        sweep(Pair(dtype, numerics), faults, seeds, record, say, model)
        trials = record.lines("trial")
    return {"trials": trials, **figures(trials, [])}
