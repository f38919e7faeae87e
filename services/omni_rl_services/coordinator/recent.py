"""The parts in memory between their arrival and their step's seal."""

from collections import OrderedDict

from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey

EACH = 48 << 10
"""Bytes that a part takes beside its values: some thirty columns, most of them empty, and the buffers they came in."""


class RecentParts:
    """The parts of the latest steps up to `limit` bytes; the ledger has all parts."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._steps: OrderedDict[StepKey, dict[int, StepRecords]] = OrderedDict()

    def put(self, key: StepKey, rank: int, records: StepRecords) -> None:
        self._steps.setdefault(key, {})[rank] = records
        self._bytes += EACH + records.nbytes
        while self._bytes > self._limit:
            self.forget(next(iter(self._steps)))

    def of(self, key: StepKey) -> dict[int, StepRecords]:
        """Return the parts of a step that are still here, by rank."""
        return dict(sorted(self._steps.get(key, {}).items()))

    def forget(self, key: StepKey) -> None:
        """Drop the parts of a step that is sealed, or whose parts are the oldest."""
        self._bytes -= sum(EACH + records.nbytes for records in self._steps.pop(key, {}).values())
