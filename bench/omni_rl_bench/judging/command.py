"""Judges clean steps of many shapes as they are judged when they are posted: anything but ok is a false alarm."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.policy import Drift, DriftPolicy
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.verdict import judge_posted
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.ledger.posted import posted_step
from omni_rl.ledger.records import StepRecords
from omni_rl_bench.judging.policies import Run, Shape
from omni_rl_bench.result import Goal, write_result

STEPS = 2000
RUN = 40
"""The steps of a run."""
SEED = 20_000
"""The seed of the first run. None of these runs was looked at while a limit was chosen."""
TOKENS = 24_576
"""About the most tokens of a step."""


def shapes() -> Iterator[Shape]:
    """Yield runs of every sort, endlessly: each dtype, few answers and many, short ones and long."""
    sizes = [(8, 16), (8, 256), (16, 1024), (64, 64), (64, 256), (256, 8), (512, 32), (1024, 16), (5000, 4), (8, 3000)]
    for number, (answers, tokens) in enumerate(cycle(sizes)):
        sort = number // len(sizes)
        for dtype in ("float32", "bfloat16"):
            yield Shape(
                dtype,
                answers,
                min(tokens, TOKENS // answers),
                ranks=1 + (number + sort) % 2,
                # An update moves a policy by more than float32 rounds: there a lag is a difference, and is reported.
                lag=(0, 1, 2)[(number + sort) % 3] if dtype == "bfloat16" else 0,
                temperature=(1.0, 0.7, 1.2)[(number + sort) % 3],
                kinds=1 + (number + 2 * sort) % 4,
                tools=(number + sort) % 4 == 1,
                dropped=(number + sort) % 5 == 2,
                sure=(number + sort) % 7 == 3,
                kept_in_bfloat16=dtype == "bfloat16" and (number + sort) % 3 == 2,
            )


@dataclass
class Told:
    """The verdicts of a run's steps: how often each severity came, and the first few sentences of those that are not
    ok."""

    shape: Shape
    severities: Counter[str] = field(default_factory=Counter)
    caused: int = 0
    worst: Severity = Severity.UNJUDGED
    sentences: list[str] = field(default_factory=list)


def judge_run(shape: Shape, seed: int, steps: int) -> Told:
    """Judge the steps of one run, one after the other."""
    run, told = Run(shape, seed), Told(shape)
    history, drift, policy = History(), Drift(), DriftPolicy(gated=True)
    yardstick = Yardstick.of(shape.dtype, lag=shape.lag)
    for _ in range(steps):
        parts = {rank: StepRecords.of(rows) for rank, rows in enumerate(run.step())}
        columns = StepColumns.joined([part.columns for part in parts.values()])
        found = judge_posted(columns, posted_step(parts, columns), yardstick, history)
        history, drift = found.history, policy.judged(drift, found.judgement).drift
        told.severities[found.judgement.severity.label] += 1
        told.caused += found.explanation is not None and found.explanation.cause != "unknown"
        told.worst = max(told.worst, drift.severity)
        if found.judgement.severity is not Severity.OK:
            told.sentences.append(found.judgement.reason)
    return told


def bench_judging(out: Path, *, steps: int = STEPS) -> Path:
    """Judge `steps` clean steps of either dtype, and write `judging.json`."""
    runs = [judge_run(shape, SEED + number, RUN) for number, shape in enumerate(islice(shapes(), 2 * steps // RUN))]
    severities = sum((told.severities for told in runs), Counter[str]())
    judged = sum(severities.values())
    alarms = judged - severities["ok"] - severities["unjudged"]
    goals = [
        Goal("clean posted steps that are told of", alarms, 0, "lower"),
        Goal("clean posted steps with a cause", sum(told.caused for told in runs), 0, "lower"),
        Goal("runs of clean posted steps that are paused", sum(t.worst is Severity.PAUSE for t in runs), 0, "lower"),
        Goal("clean steps judged", judged - severities["unjudged"], 2 * STEPS, "higher"),
    ]
    figures: dict[str, Any] = {
        "steps": judged,
        "severities": dict(severities),
        "runs": [
            {**asdict(told.shape), "severities": dict(told.severities), "told": told.sentences[:4]} for told in runs
        ],
    }
    return write_result(out / "judging.json", "omni-rl bench judging", goals, figures)
