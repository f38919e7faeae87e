"""Runs what has not been run yet, and writes what it all amounts to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_rl.bench.learning.cases import CASES, Case
from omni_rl.bench.learning.runs import Say, service
from omni_rl.bench.result import Goal, write_result

SECONDS = 600.0
"""What a seed may take."""
STILL = 0.05
"""By how much a control's held-out reward may move."""


def bench_learning(out: Path, seeds: Sequence[int], cases: Sequence[str], parts: Path, say: Say) -> Path:
    """Run what `parts` does not have yet, one after the other, and write `learning.json` to `out`.

    Each run's curve is drawn beside its part, as `omni-rl plot` draws it.
    """
    chosen = [case for case in CASES if case.name in cases or not cases]
    waiting = [(case, seed) for case in chosen for seed in seeds if not _part(parts, case, seed).exists()]
    if waiting:
        parts.mkdir(parents=True, exist_ok=True)
        with service(say) as running:
            for case, seed in waiting:
                say(f"{case.name}, seed {seed}")
                result, drawing = running.run(case, seed)
                _part(parts, case, seed).with_suffix(".svg").write_text(drawing)
                _part(parts, case, seed).write_text(json.dumps(result))
    results = {
        case.name: {str(seed): json.loads(_part(parts, case, seed).read_text()) for seed in seeds} for case in chosen
    }
    return write_result(out / "learning.json", "omni-rl bench learning", _goals(chosen, results), results)


def _part(parts: Path, case: Case, seed: int) -> Path:
    return parts / f"{case.name}-{seed}.json"


def _goals(cases: Sequence[Case], results: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """Of the worst seed of each case. A forced mismatch has none: it shows what a correction does."""
    found = []
    for case in cases:
        if case.mismatch:
            continue
        runs = list(results[case.name].values())
        curves = [list(run["held_out_reward"].values()) for run in runs]
        if case.still:
            moved = max(abs(curve[-1] - curve[0]) for curve in curves)
            found.append(Goal(f"{case.name}: held-out reward moved by", moved, STILL, "lower"))
        if case.reaches is not None:
            reached = min(curve[-1] for curve in curves)
            found.append(Goal(f"{case.name}: held-out reward, worst seed", reached, case.reaches, "higher"))
            slowest = max(run["seconds"] for run in runs)
            found.append(Goal(f"{case.name}: seconds, slowest seed", slowest, SECONDS, "lower"))
        found.append(Goal(f"{case.name}: steps not ok", sum(run["steps_not_ok"] for run in runs), 0, "lower"))
    return found
