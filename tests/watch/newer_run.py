"""A run whose omni-rl is newer than its coordinator's: it has a field of runs and two columns of records more.

python tests/watch/newer_run.py URL STEPS
"""

import sys
from typing import Any

import pyarrow as pa

from omni_rl.ledger import schema as published

schema: Any = published
schema.COLUMNS = (
    *schema.COLUMNS,
    schema.Column("mood", pa.list_(pa.float64()), "What a later version may know of each token.", "T"),
    schema.Column("weather", pa.string(), "What a later version may know of an answer."),
)
schema.SCHEMA = pa.schema(
    [pa.field(column.name, column.type, nullable=not column.required) for column in schema.COLUMNS],
    metadata=schema.SCHEMA.metadata,
)

from omni_rl.api.runs import CorrectionBody, RunBody  # noqa: E402 - records are read as the schema is by then
from omni_rl.watch import watcher  # noqa: E402
from omni_rl.watch.table import StepValues, step_rows  # noqa: E402
from tests.watch.steps import step_of  # noqa: E402


class NewerCorrection(CorrectionBody):
    smoothing: float = 0.5


class NewerRun(RunBody):
    correction: NewerCorrection = NewerCorrection()
    watched_since: str = "the first step"


def newer_rows(values: StepValues) -> list[dict[str, Any]]:
    return [{**row, "mood": [0.0] * len(row["ids"]), "weather": "fair"} for row in step_rows(values)]


def main() -> None:
    newer: Any = watcher
    newer.RunBody, newer.CorrectionBody, newer.step_rows = NewerRun, NewerCorrection, newer_rows
    run = watcher.Watcher(url=sys.argv[1], run="newer", dtype="float32")
    for seed in range(int(sys.argv[2])):
        run.step(**step_of(seed))
    run.close(60)
    sys.stdout.write(f"{run.counts.sealed}\n")


if __name__ == "__main__":
    main()
