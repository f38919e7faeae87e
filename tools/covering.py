"""Finds which of a room's tests execute a line of the room's code."""

import ast
import hashlib
import json
import re
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import coverage
import pytest

from tools.forked import run_pytest

MOST_S = 60
"""The most seconds that the tests of one change take, by what they took unchanged."""


@dataclass(frozen=True)
class Room:
    """Where a room's code and its tests are, relative to the checkout: the quick ones, and the slow ones of the files
    in `slow`, without which some of the code is never executed."""

    code: Path
    tests: tuple[str, ...]
    slow: tuple[str, ...] = ()


def digest_of(directories: Iterable[Path]) -> str:
    """Return a digest of all Python files in these directories."""
    digest = hashlib.sha256()
    for path in sorted(path for directory in directories for path in directory.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Measured:
    """A pytest plugin that records which lines each test executes, in processes that it starts too, and its seconds."""

    def __init__(self, place: Path, code: Path, slow: tuple[str, ...]) -> None:
        self.place, self.slow = place, slow
        self.durations: dict[str, float] = {}
        settings = f"[run]\nsource = {code}\nparallel = true\ndata_file = {place}/data\n"
        (place / "main.ini").write_text(settings)
        # pytest names the test that runs in the environment, which every process takes from the one that starts it.
        (place / "started.ini").write_text(settings + "context = ${PYTEST_CURRENT_TEST-}\n")
        self.coverage: coverage.Coverage | None = None

    def pytest_sessionstart(self) -> None:
        self.coverage = coverage.Coverage(config_file=str(self.place / "main.ini"))
        self.coverage.start()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not item.get_closest_marker("slow") or item.nodeid.startswith(self.slow)]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        assert self.coverage is not None
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.durations[report.nodeid] = self.durations.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        assert self.coverage is not None
        self.coverage.stop()
        self.coverage.save()
        (self.place / "durations.json").write_text(json.dumps(self.durations))


@dataclass(frozen=True)
class Covering:
    """The tests that execute each line of a room's code, and what each took."""

    lines: dict[str, dict[int, list[str]]]
    durations: dict[str, float]

    @classmethod
    def of(cls, room: Room, tree: Path, place: Path) -> Self:
        """Run the room's tests once under coverage, unless its code and its tests are as they were then."""
        digest = digest_of(tree / part for part in (str(room.code), *room.tests))
        if not (place / "digest").exists() or (place / "digest").read_text() != digest:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            print(f"the tests of {room.code}, unchanged and under coverage ...", flush=True)
            measured = Measured(place, tree / room.code, room.slow)
            # Coverage starts by itself in every process that finds this variable.
            started = {"COVERAGE_PROCESS_START": str(place / "started.ini")}
            code = run_pytest(tree, room.tests, 3600, measured, started)
            if code != 0:
                raise SystemExit(f"the unchanged code's own tests fail: {tree.parent}/output.txt")
            # A test that pytest does not find by its name would count as one that failed.
            names = json.loads((place / "durations.json").read_text())
            if run_pytest(tree, ["--collect-only", *names], 600) != 0:
                raise SystemExit(f"pytest does not find its own tests: {tree.parent}/output.txt")
            coverage.Coverage(config_file=str(place / "main.ini")).combine([str(place)])
            (place / "digest").write_text(digest)
        durations = json.loads((place / "durations.json").read_text())
        return cls(dict(_lines(place, tree, durations)), durations)

    def seconds(self, tests: Sequence[str]) -> float:
        """Return the seconds that these tests took unchanged."""
        return sum(self.durations[test] for test in tests)

    def tests(self, where: Path, source: str, first: int, last: int) -> Iterator[list[str]]:
        """Yield the tests that execute lines of a file, which has this source, then the others of their files, because
        what a fixture does for all of these counts as its first test's.

        A line outside of functions is executed when its module is imported, whatever test is the first to do that. What
        such a line says shows in the functions of its file, and what a function's head says in that function: the tests
        that execute these are yielded, and all tests where none does.

        Each list has the quickest tests, and as many as take a minute.
        """
        lines = self.lines.get(where.as_posix(), {})
        numbers = sorted(lines)
        # A statement of several lines is found at its first line.
        start = numbers[max(bisect_right(numbers, first) - 1, 0)] if numbers else first
        wanted = _where_it_shows(source, start, last)
        found = {test for number in wanted for test in lines.get(number, ())}
        found = found or {test for tests in lines.values() for test in tests} or set(self.durations)
        files = {test.split("::")[0] for test in found}
        others = {test for test in self.durations if test.split("::")[0] in files} - found
        for tests in (found, others):
            quickest = sorted(tests, key=self.durations.__getitem__)
            ends = accumulate(self.durations[test] for test in quickest)
            if chosen := [test for test, end in zip(quickest, ends, strict=True) if end <= MOST_S]:
                yield chosen


def _where_it_shows(source: str, first: int, last: int) -> set[int]:
    """Return the numbers of the lines that are executed because of lines `first` to `last`: these, in a function's
    body; else the bodies of the function whose head they are part of, or of all functions."""
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    bodies = [range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1) for node in functions]
    if any(first in body for body in bodies):
        return set(range(first, last + 1))
    heads = [min([node.lineno, *(one.lineno for one in node.decorator_list)]) for node in functions]
    own = [body for head, body in zip(heads, bodies, strict=True) if head <= first < body.start]
    return {line for body in own or bodies for line in body}


def _lines(place: Path, tree: Path, durations: dict[str, float]) -> Iterator[tuple[str, dict[int, list[str]]]]:
    (kept,) = [path for path in place.iterdir() if path.name.startswith("data")]
    data = coverage.CoverageData(str(kept))
    data.read()
    for name in data.measured_files():
        lines = data.contexts_by_lineno(name).items()
        tests = {line: {re.sub(r" \((setup|call|teardown)\)$", "", test) for test in found} for line, found in lines}
        yield (
            Path(name).relative_to(tree).as_posix(),
            {line: sorted(found & durations.keys()) for line, found in tests.items()},
        )
