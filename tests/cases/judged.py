"""A case judged from its records, without a service."""

from dataclasses import dataclass

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.verdict import judge_posted
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.ledger.posted import posted_step
from omni_rl.ledger.records import StepRecords
from tests.cases.world import Row


@dataclass
class Judged:
    severity: Severity
    cause: str | None
    sentence: str


class Judge:
    """Of one run's steps, one after the other."""

    def __init__(self, dtype: str = "bfloat16", lag: int | None = None) -> None:
        self.history = History()
        self.yardstick = Yardstick.of(dtype, lag=lag)

    def rows(self, *parts: list[Row]) -> Judged:
        """Records of each rank, as they are posted."""
        records = {rank: StepRecords.of(rows) for rank, rows in enumerate(parts)}
        columns = StepColumns.joined([part.columns for part in records.values()])
        found = judge_posted(columns, posted_step(records, columns), self.yardstick, self.history)
        self.history = found.history
        why = found.explanation
        return Judged(found.judgement.severity, str(why.cause) if why else None, why.sentence if why else "")
