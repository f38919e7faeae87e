"""`omni-rl sabotage` without the command line around it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_rl.rollout.settings import Dtype
from omni_rl.sabotage.faults import chosen
from omni_rl.sabotage.figures import figures
from omni_rl.sabotage.rig import Pair, Say
from omni_rl.sabotage.suite import Record, sweep
from omni_rl.settings import Numerics


def run(
    model: Path, dtype: Dtype, numerics: Numerics, fault: str | None, seeds: Sequence[int], say: Say
) -> dict[str, Any]:
    """Every trial, and what they amount to. Raises `ConfigError` for a fault that there is not."""
    faults = chosen(fault)
    with tempfile.TemporaryDirectory() as folder:
        record = Record(Path(folder) / "trials.jsonl")
        sweep(Pair(dtype, numerics), faults, seeds, record, say, model)
        trials = record.lines("trial")
    return {"trials": trials, **figures(trials, [])}
