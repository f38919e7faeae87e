"""Parts in memory between their arrival and their step's seal, and room for those that are arriving."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from omni_rl.errors import TooManyError
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey

WAIT_SECONDS = 20.0
"""How long a part waits for room; below what clients wait for an answer."""


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


class Room:
    """Bytes of bodies that may be in memory at once; who finds none waits, and is then told to come back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = limit
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes (at most all there are). Raises `TooManyError`."""
        size = min(size, self._limit)
        try:
            async with asyncio.timeout(WAIT_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._free >= size)
                self._free -= size
        except TimeoutError:
            raise TooManyError("more records are arriving than there is room for; send this part again") from None
        try:
            yield
        finally:
            async with self._changed:
                self._free += size
                self._changed.notify_all()
