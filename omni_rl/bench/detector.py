"""How good the detector is: faults put into live runs, and clean steps; `bench/detector.json` and its picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_rl.bench.result import Goal, write_result
from omni_rl.config import SMALL_CHECKPOINT
from omni_rl.rollout.settings import Dtype
from omni_rl.sabotage.faults import FAULTS, UNPROVEN
from omni_rl.sabotage.figures import Line, confusion, figures
from omni_rl.sabotage.picture import confusion_svg
from omni_rl.sabotage.suite import Progress, Record, clean, sweep

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
FIRST_SEED = 105
"""Limits and checks were made with seeds below."""
FIRST_CLEAN_SEED = 20_000
PICTURE = Path("docs/pictures/detector.svg")


def bench_detector(out: Path, seeds: int, steps: int, path: Path, progress: Progress) -> Path:
    """Try what `path` does not have yet, then write `detector.json` to `out` and the confusion matrix beside it."""
    record = Record(path)
    for dtype in DTYPES:
        sweep(SMALL_CHECKPOINT, dtype, FAULTS, range(FIRST_SEED, FIRST_SEED + seeds), record, progress)
    for dtype in DTYPES:
        clean(SMALL_CHECKPOINT, dtype, steps, FIRST_CLEAN_SEED, record, progress)
    return publish(out, record)


def publish(out: Path, record: Record) -> Path:
    """What the record amounts to as it is."""
    trials = record.lines("trial")
    found: dict[str, Any] = {"faults": len({fault.name for fault in FAULTS}), "unproven": UNPROVEN}
    for dtype in DTYPES:
        mine = [trial for trial in trials if trial["dtype"] == dtype]
        blocks = [block for block in record.lines("clean") if block["dtype"] == dtype]
        found[dtype] = figures(mine, blocks) | {"each": [_short(trial) for trial in mine]}
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(
        confusion_svg(confusion(trials), f"{len(trials)} faults put into live runs: what each was called")
    )
    return write_result(out / "detector.json", "omni-rl bench detector", _goals(found), found)


def _short(trial: Line) -> dict[str, Any]:
    """Without what only a person who debugs a trial wants."""
    return {name: value for name, value in trial.items() if name not in ("kind", "dtype", "seconds", "sentence")}


def _goals(found: dict[str, Any]) -> list[Goal]:
    goals = []
    for dtype in DTYPES:
        of = found[dtype]
        shares: Sequence[tuple[str, str, float]] = (
            ("recall of proof checks", "recall_of_proof_checks", 1.0),
            ("recall beyond noise", "recall_beyond_noise", 1.0),
            ("right cause", "right_cause", 0.95),
            ("right action", "right_action", 1.0),
            ("healed", "healed", 1.0),
        )
        goals += [Goal(f"{dtype} {label}", of[key]["share"], bar, "higher") for label, key, bar in shares]
        if of["clean"]["steps"]:
            goals.append(
                Goal(f"{dtype} false alarms in {of['clean']['steps']} clean steps", of["clean"]["alarms"], 0, "lower")
            )
            goals.append(
                Goal(f"{dtype} cheap checks, share of a step", of["clean"]["cheap_checks_of_a_step"], 0.01, "lower")
            )
    return goals
