"""How much memory what clients send may take, and what that comes to: bodies, parts that wait for a seal, a step that
is judged."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SHARE = 0.75
"""Of what this process may have; the rest is the program, and what the libraries keep."""
MOST = 16 << 30
PER_TOKEN = 128
"""Bytes that judging takes for each token of a step, at most: 66 of one that is ok, 102 of one that has to be
explained, and its records, 20."""
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
