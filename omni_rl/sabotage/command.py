"""`omni-rl sabotage` without the command line around it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_rl.rollout.settings import Dtype
from omni_rl.sabotage.figures import figures
from omni_rl.sabotage.suite import Progress, Record, chosen, sweep


def run(model: Path, dtype: Dtype, fault: str | None, seeds: Sequence[int], progress: Progress) -> dict[str, Any]:
    """Every trial, and what they amount to. Raises `ConfigError` for a fault that there is not."""
    faults = chosen(fault)
    with tempfile.TemporaryDirectory() as folder:
        record = Record(Path(folder) / "trials.jsonl")
        sweep(model, dtype, faults, seeds, record, progress)
        trials = record.lines("trial")
    return {"trials": trials, **figures(trials, [])}
