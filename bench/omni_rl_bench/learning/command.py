"""Runs what has not been run yet, and writes the result of all runs."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_rl_bench.learning.cases import CASES, Case
from omni_rl_bench.learning.runs import Runs
from omni_rl_bench.own_service import Say, own_service
from omni_rl_bench.result import Goal, write_result

SECONDS = 600.0
"""The seconds that a seed may take."""
STILL = 0.05
"""By how much a control's held-out reward may move, at any time."""
PICTURE = Path("docs/pictures/learning.svg")
"""Where the first run's curve is drawn."""


def bench_learning(out: Path, seeds: Sequence[int], cases: Sequence[str], parts: Path, say: Say) -> Path:
    """Run what `parts` does not have yet, one after the other, and write `learning.json` to `out`.

    Each run's curve is drawn beside its part, as `omni-rl plot` draws it.
    """
    chosen = [case for case in CASES if case.name in cases or not cases]
    asked = [(case, seed) for case in chosen for seed in case.seeds(seeds)]
    waiting = [(case, seed) for case, seed in asked if not _part(parts, case, seed).exists()]
    if waiting:
        parts.mkdir(parents=True, exist_ok=True)
        with own_service(say) as service, service.client() as client:
            for case, seed in waiting:
                say(f"{case.name}, seed {seed}")
                result, drawing = Runs(service, client).run(case, seed)
                _part(parts, case, seed).with_suffix(".svg").write_text(drawing)
                _part(parts, case, seed).write_text(json.dumps(result))
    results = {
        case.name: {str(seed): json.loads(_part(parts, case, seed).read_text()) for seed in case.seeds(seeds)}
        for case in chosen
    }
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_part(parts, chosen[0], seeds[0]).with_suffix(".svg"), PICTURE)
    return write_result(out / "learning.json", "omni-rl bench learning", _goals(chosen, results), results)


def _part(parts: Path, case: Case, seed: int) -> Path:
    return parts / f"{case.name}-{seed}.json"


def _goals(cases: Sequence[Case], results: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """Return the goals for the worst seed of each case. A forced mismatch has none: it shows what a correction does."""
    found = []
    for case in cases:
        if case.mismatch:
            continue
        runs = list(results[case.name].values())
        curves = [list(run["held_out_reward"].values()) for run in runs]
        if case.still:
            moved = max(abs(reward - curve[0]) for curve in curves for reward in curve)
            found.append(Goal(f"{case.name}: held-out reward moved by", moved, STILL, "lower"))
        if case.reaches is not None:
            reached = min(curve[-1] for curve in curves)
            found.append(Goal(f"{case.name}: held-out reward, worst seed", reached, case.reaches, "higher"))
            slowest = max(run["seconds"] for run in runs)
            found.append(Goal(f"{case.name}: seconds, slowest seed", slowest, SECONDS, "lower"))
        found.append(Goal(f"{case.name}: steps not ok", sum(run["steps_not_ok"] for run in runs), 0, "lower"))
    return found
