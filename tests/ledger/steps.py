"""Steps to put into a ledger."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare, compare_step
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import NewStep, StepKey, Timeline, WorstSamples

CONFIG = {"model": "small", "dtype": "float32", "limits": {"overall": {"gen_kl_error": 0.01}}}
KINDS = ("text", "image")


def attempt_numbers(ledger: Ledger, run: str) -> tuple[int, ...]:
    """The numbers of a run's attempts."""
    return tuple(one.attempt for one in ledger.attempts(run))


def steps_of(found: Timeline) -> NDArray[np.int64]:
    """The steps at which `line` has its points: each step, or a bucket's first and last."""
    return found.first if found.width == 1 else np.stack([found.first, found.last], axis=1).reshape(-1)


def line(found: Timeline, figure: str) -> NDArray[np.float64]:
    """One line through every extreme: each step's value, or a bucket's least and greatest."""
    low, high = found.low[figure], found.high[figure]
    return high if found.width == 1 else np.stack([low, high], axis=1).reshape(-1)


def records(seed: int = 0, rows: int = 3, tokens: int = 20, rank: int = 0) -> StepRecords:
    """Random answers of two kinds."""
    rng = np.random.default_rng([seed, rank])
    made: list[dict[str, Any]] = []
    for row in range(rows):
        rollout = -rng.exponential(1.0, tokens)
        made.append(
            {
                "sample": f"r{rank}s{row}",
                "kind": KINDS[row % len(KINDS)],
                "prompt_ids": rng.integers(0, 99, 4),
                "ids": rng.integers(0, 99, tokens),
                "rollout_logprobs": rollout,
                "train_logprobs": rollout + rng.normal(0, 1e-3 * (row + 1), tokens),
            }
        )
    return StepRecords.of(made)


def post(ledger: Ledger, key: StepKey, *parts: StepRecords) -> dict[int, str]:
    """Put one part a rank."""
    for rank, part in enumerate(parts):
        ledger.put_part(key, rank, part).result()
    return {rank: part.digest for rank, part in enumerate(parts)}


def judged(key: StepKey, *parts: StepRecords, worst: int = 2, **changes: Any) -> NewStep:
    """A step as whoever judges it would seal it."""
    joined = StepColumns.joined([part.columns for part in parts])
    comparison = compare_step(joined)
    rows = [(rank, part.row(number)) for rank, part in enumerate(parts) for number in range(len(part))]
    ranks, records = zip(*(rows[number] for number in comparison.worst(worst)), strict=True)
    step = NewStep(
        key,
        {rank: part.digest for rank, part in enumerate(parts)},
        severity=0,
        comparison=comparison,
        samples=len(joined.samples),
        tokens=joined.tokens,
        kept=WorstSamples(
            ranks,
            tuple(compare([joined.record(number)]).metrics for number in comparison.worst(worst)),
            StepRecords(pa.concat_tables([record.table for record in records])),
        ),
    )
    return replace(step, **changes)


def sealed(ledger: Ledger, key: StepKey, *parts: StepRecords, **changes: Any) -> NewStep:
    """Post and seal."""
    post(ledger, key, *parts)
    step = judged(key, *parts, **changes)
    ledger.seal(step).result()
    return step
