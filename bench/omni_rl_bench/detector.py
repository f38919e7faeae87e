"""Measures how good the detector is: faults in live services, and clean steps; `bench/detector.json` and its
picture."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_rl_bench.result import Goal, write_result
from omni_rl_bench.sabotage.clean import clean
from omni_rl_bench.sabotage.faults import FAULTS, UNPROVEN
from omni_rl_bench.sabotage.figures import Line, confusion, figures
from omni_rl_bench.sabotage.picture import confusion_svg
from omni_rl_bench.sabotage.rig import PAIRS, Pair, Say
from omni_rl_bench.sabotage.suite import Record, sweep

FIRST_SEED = 401
"""The first seed that is reported: limits, checks and faults were made with lower seeds."""
TUNED = {"bfloat16": {401, 402, 403}}
"""Later seeds of a pair, on which a fault of the checks was found and repaired: they are not reported either."""
FIRST_CLEAN_SEED = 60_000
"""The first seed of clean runs: runs of the earlier seeds showed how far one accident of the router's goes."""
CLEAN = ("float32", "bfloat16")
PICTURE = Path("docs/pictures/detector.svg")


def bench_detector(out: Path, seeds: int, steps: int, path: Path, say: Say) -> Path:
    """Try what `path` does not have yet, then write `detector.json` to `out` and the confusion matrix beside it."""
    record = Record(path)
    for pair in PAIRS.values():
        sweep(pair, FAULTS, seeds_of(pair, seeds), record, say)
    for name in CLEAN:
        clean(PAIRS[name], steps, FIRST_CLEAN_SEED, record, say)
    return publish(out, record)


def seeds_of(pair: Pair, count: int) -> list[int]:
    """Return the first `count` seeds from `FIRST_SEED` on that nothing was tuned on for this pair."""
    unseen = (seed for seed in itertools.count(FIRST_SEED) if seed not in TUNED.get(str(pair), ()))
    return list(itertools.islice(unseen, count))


def publish(out: Path, record: Record) -> Path:
    """Write the result of the record as it is."""
    trials = record.lines("trial")
    found: dict[str, Any] = {
        "faults": len({fault.name for fault in FAULTS}),
        "kinds_of_trial": len(FAULTS),
        "unproven": UNPROVEN,
    }
    for pair in PAIRS:
        mine = [trial for trial in trials if trial["pair"] == pair]
        blocks = [block for block in record.lines("clean") if block["pair"] == pair]
        tried = Counter(str(trial["seed"]) for trial in mine)
        found[pair] = {"trials_by_seed": dict(tried), **figures(mine, blocks), "each": [_short(one) for one in mine]}
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(
        confusion_svg(confusion(trials), f"{len(trials)} faults put into live services: what each was called")
    )
    return write_result(out / "detector.json", "omni-rl bench detector", _goals(found), found)


def _short(trial: Line) -> dict[str, Any]:
    """Return the trial without what is only of use in debugging it."""
    return {name: value for name, value in trial.items() if name not in ("kind", "pair", "seconds", "sentence")}


def _goals(found: dict[str, Any]) -> list[Goal]:
    """Return the goals. bfloat16 hides what is smaller than its rounding: what was not noticed is listed with its
    size."""
    bars: dict[str, Sequence[tuple[str, str, float]]] = {
        "float32": (("noticed", "noticed", 1.0), ("right cause", "right_cause", 0.95)),
        "bfloat16": (("right cause of those noticed", "right_cause", 0.90),),
        "batch_invariant": (("noticed", "noticed", 1.0), ("right cause", "right_cause", 0.90)),
    }
    goals = []
    for pair, own in bars.items():
        of = found[pair]
        shares = (*own, ("right action", "right_action", 1.0), ("healed", "healed", 1.0))
        goals += [Goal(f"{pair} {label}", of[key]["share"], bar, "higher") for label, key, bar in shares]
        if steps := of["clean"]["steps"]:
            goals.append(Goal(f"{pair} false alarms in {steps} clean steps", of["clean"]["alarms"], 0, "lower"))
    return goals
