"""Parts in memory between their arrival and their step's seal."""

from collections import OrderedDict

from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey


class RecentParts:
    """The latest parts up to `limit` bytes; the ledger has all."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._parts: OrderedDict[tuple[StepKey, int], StepRecords] = OrderedDict()

    def put(self, key: StepKey, rank: int, records: StepRecords) -> None:
        self._drop(key, rank)
        self._parts[key, rank] = records
        self._bytes += records.table.nbytes
        while self._bytes > self._limit:
            self._drop(*next(iter(self._parts)))

    def get(self, key: StepKey, rank: int, digest: str) -> StepRecords | None:
        """The part, if it is still here and is the one that the ledger has."""
        found = self._parts.get((key, rank))
        return found if found is not None and found.digest == digest else None

    def forget(self, key: StepKey) -> None:
        """A step is sealed."""
        for rank in [rank for step, rank in self._parts if step == key]:
            self._drop(key, rank)

    def _drop(self, key: StepKey, rank: int) -> None:
        if (gone := self._parts.pop((key, rank), None)) is not None:
            self._bytes -= gone.table.nbytes
