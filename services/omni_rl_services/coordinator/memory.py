"""How much memory what clients send may take, and what that comes to: bodies, parts that wait for a seal, a step that
is judged."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from omni_rl.errors import TooManyError

SHARE = 0.75
"""Of what this process may have; the rest is the program, and what the libraries keep."""
MOST = 16 << 30
PER_TOKEN = 128
"""Bytes that judging takes for each token of a step, at most: 66 of one that is ok, 102 of one that has to be
explained, and its records, 20."""
WAIT_SECONDS = 20.0
"""How long anybody waits for room; below what clients wait for an answer."""
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Memory:
    """One budget, in bytes."""

    whole: int

    @property
    def bodies(self) -> int:
        """Of all bodies that arrive at once: each is in memory up to three times while it is kept."""
        return self.whole // 8

    @property
    def recent(self) -> int:
        """Of parts in memory between their arrival and their step's seal."""
        return self.whole // 16

    @property
    def judging(self) -> int:
        """Of all steps that are judged at once."""
        return self.whole // 2

    @property
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return self.judging // PER_TOKEN


def available(cgroups: Iterable[Path] = _CGROUPS) -> int:
    """Bytes that this process may have: the machine's, or fewer where its control group says so."""
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
    """What was asked for, or what this process may have."""
    return Memory(min(MOST, int(SHARE * available())) if asked is None else asked)


class Room:
    """Bytes that may be held at once; who finds none waits, and is then told to come back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = limit
        self._changed = asyncio.Condition()
        self._waiting = 0

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits."""
        return self._waiting > 0

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes (at most all there are). Raises `TooManyError`."""
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
