"""How much memory the coordinator may use for what clients send, and how it is divided: bodies, parts that wait for a
seal, and steps that are judged."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from omni_rl.errors import TooManyError

SHARE = 0.75
"""The share of the memory that this process may have; the rest is for the program, and for what the libraries keep."""
MOST = 16 << 30
PER_TOKEN = 128
"""Bytes that judging takes for each token of a step, at most: 66 for one that is ok, 102 for one that has to be
explained, and 20 for its records."""
RECORD = 20
"""Bytes of a token's records that are part of `PER_TOKEN`."""
PER_BYTE = 2
"""Bytes that judging takes for each byte of a step's records beyond `RECORD` a token, for texts and router choices:
they are read, and the parts of all ranks put together."""
UPDATES = 16
"""One part in so many of all memory is for fingerprints of weights."""
WAIT_SECONDS = 20.0
"""Seconds that anybody waits for memory; fewer than clients wait for an answer."""
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Memory:
    """One budget of memory, in bytes."""

    whole: int

    @property
    def bodies(self) -> int:
        """Bytes for all bodies that arrive at once: each is in memory up to three times while it is stored."""
        return self.whole // 8

    @property
    def recent(self) -> int:
        """Bytes for parts in memory between their arrival and their step's seal."""
        return self.whole // 16

    @property
    def updates(self) -> int:
        """Bytes for the fingerprints that engines and trainers posted, with which the next ones are compared."""
        return self.whole // UPDATES

    @property
    def judging(self) -> int:
        """Bytes for all steps that are judged at once."""
        return self.whole // 2

    def to_judge(self, tokens: int, size: int) -> int:
        """Return the bytes for judging a step with so many tokens, whose records are of `size` bytes."""
        return PER_TOKEN * tokens + PER_BYTE * max(0, size - RECORD * tokens)

    @property
    def step_tokens(self) -> int:
        """The most tokens of one step."""
        return self.judging // PER_TOKEN


def available(cgroups: Iterable[Path] = _CGROUPS) -> int:
    """Return the bytes that this process may have: the machine's, or fewer where its control group says so."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in cgroups:
        try:
            said = file.read_text().strip()
        except OSError:
            continue
        if said.isdecimal():
            found.append(int(said))
    return min(found)


def budget(asked: int | None) -> Memory:
    """Return the budget of `asked` bytes, or that of what this process may have."""
    return Memory(min(MOST, int(SHARE * available())) if asked is None else asked)


class Room:
    """Bytes that may be held at once. A caller that finds too few free waits for a while, and is then refused."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = limit
        self._changed = asyncio.Condition()
        self._waiting = 0

    @property
    def is_waited_for(self) -> bool:
        """Whether a caller waits for bytes."""
        return self._waiting > 0

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes (at most all there are) in the context. Raises `TooManyError` after `WAIT_SECONDS`."""
        size = min(size, self._limit)
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._free >= size)
                self._free -= size
        except TimeoutError:
            raise TooManyError("more is arriving than there is room for; send this again") from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            async with self._changed:
                self._free += size
                self._changed.notify_all()
