"""Measures what the processes of a service hold: those that live through the last half of a soak must not grow."""

import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omni_rl.service.state import marked

LOOK_SECONDS = 5.0
KINDS = {
    "omni_rl_services.coordinator": "coordinator",
    "omni_rl.bridge": "bridge",
    "ray::RolloutActor": "engine",
    "ray::TrainerActor": "trainer",
    "ray::TrainWorker": "rank",
    "gcs_server": "Ray's gcs_server",
    "raylet": "Ray's raylet",
    "ray/dashboard/dashboard.py": "Ray's dashboard",
}
"""The kinds of process by a part of the command line; the first that is found counts."""
RAYS = frozenset(kind for kind in KINDS.values() if kind.startswith("Ray's"))
"""The kinds of process whose code is Ray's; how they are started is ours."""


@dataclass(frozen=True)
class Look:
    """The MiB of each process at `at` seconds, by kind and process id."""

    at: float
    sizes: dict[tuple[str, int], float]


@dataclass(frozen=True)
class Growth:
    """The growth of the process of a kind that grew most: the median MiB of the first and of the last third of a time,
    and of each minute of it."""

    first: float
    last: float
    by_minute: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        return self.last / self.first


def look(service: str, until: threading.Event, looks: list[Look]) -> None:
    """Add a look to `looks` every few seconds."""
    began = time.monotonic()
    while not until.wait(LOOK_SECONDS):
        sizes = {(kind, pid): own_mib(pid) for kind, pids in processes(service).items() for pid in pids}
        looks.append(Look(time.monotonic() - began, {key: size for key, size in sizes.items() if size > 0}))


def growth(looks: Sequence[Look], begin: float, end: float) -> dict[str, Growth]:
    """Return the growth by kind, of processes that lived from `begin` to `end`; one that was started meanwhile is still
    warming up."""
    third = (end - begin) / 3
    first = _sizes(looks, begin, begin + third)
    last = _sizes(looks, end - third, end)
    of_kind: dict[str, list[Growth]] = defaultdict(list)
    # Only processes that lived at the very beginning and at the very end count.
    for key in _sizes(looks, begin, begin + third / 4).keys() & _sizes(looks, end - third / 4, end).keys():
        of_kind[key[0]].append(
            Growth(statistics.median(first[key]), statistics.median(last[key]), _by_minute(looks, key, begin, end))
        )
    return {kind: max(each, key=lambda its: its.ratio) for kind, each in sorted(of_kind.items())}


def _by_minute(looks: Sequence[Look], key: tuple[str, int], begin: float, end: float) -> tuple[float, ...]:
    starts = (begin + 60 * minute for minute in range(int((end - begin) // 60)))
    minutes = (_sizes(looks, start, start + 60).get(key) for start in starts)
    return tuple(round(statistics.median(sizes), 1) for sizes in minutes if sizes)


def _sizes(looks: Sequence[Look], begin: float, end: float) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for each in looks:
        if begin <= each.at < end:
            for key, size in each.sizes.items():
                found[key].append(size)
    return found


def processes(service: str) -> dict[str, list[int]]:
    """Return the process ids by kind."""
    found: dict[str, list[int]] = defaultdict(list)
    for pid, command in _commands(service):
        kind = next((kind for part, kind in KINDS.items() if part in command), None)
        if kind is not None:
            found[kind].append(pid)
    return found


def _commands(service: str) -> Iterator[tuple[int, str]]:
    for pid in marked(service):
        try:
            yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone meanwhile
            continue


def own_mib(pid: int) -> float:
    """Return the MiB that are the process's own (no shared memory, no files); 0 if it is gone."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0.0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 2**20
