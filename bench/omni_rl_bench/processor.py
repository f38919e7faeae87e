"""Measures processor time of processes, which leaves out what else the machine does."""

import os
from pathlib import Path


def processor_seconds(pid: int) -> float:
    """Return the processor seconds of one process so far; raises `OSError` if there is none of that id."""
    return _ticks(_stat(pid)) / os.sysconf("SC_CLK_TCK")


def processor_seconds_below(root: int) -> float:
    """Return the processor seconds of the process `root` and all that it started, directly or not, as far as they
    live."""
    stats: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stats[int(entry.name)] = _stat(int(entry.name))
            except OSError:  # it ended meanwhile
                continue
    return sum(_ticks(stat) for pid, stat in stats.items() if _below(pid, root, stats)) / os.sysconf("SC_CLK_TCK")


def _below(pid: int, root: int, stats: dict[int, list[str]]) -> bool:
    while pid != root:
        if pid not in stats:
            return False
        pid = int(stats[pid][1])
    return True


def _stat(pid: int) -> list[str]:
    """Return the fields of proc(5) behind the name, which may hold anything: the state, the parent, and so on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _ticks(stat: list[str]) -> int:
    """Return the ticks in user and in system mode, all threads together."""
    return int(stat[11]) + int(stat[12])
