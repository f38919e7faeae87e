"""Sends cases to a coordinator of its own, a process that ends with it, and adds up what was found."""

import json
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omni_rl_bench.coordinator import Running, coordinator
from omni_rl_bench.fuzz.answers import Finding, code_of, findings
from omni_rl_bench.fuzz.grammar import Grammar
from omni_rl_bench.fuzz.watched import BLOCKS, STACKS
from omni_rl_bench.fuzz.wire import Wire
from omni_rl_bench.result import BenchmarkError

CONNECTIONS = 4
WARM = 2_000
"""The requests after which memory is first read: caches are filled by then, and what is made once is made."""
LOOK = 500
"""How many requests lie between two readings of memory."""
LAST = 20_000
"""How many characters of stacks are stored: of the last times that the loop was late."""
MIB = 1 << 20
WATCHED = "omni_rl_bench.fuzz.watched"
MEMORY = 256 * MIB
"""The bytes that the coordinator may hold of what clients send: a sixteenth of it are parts that wait for a seal."""


@dataclass
class Report:
    """The findings of one coordinator.

    `blocks` are the milliseconds that the event loop was blocked, with the time; `where` are stacks of its threads when
    it was late. `logged` are faults in its log. `missing` are operations that nothing was sent to.
    """

    seed: int
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    blocks: list[dict[str, float]] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    where: str = ""

    def count(self, kind: str) -> int:
        return sum(one.kind == kind for one in self.findings)

    @property
    def growth(self) -> float:
        """The most MiB by which resident memory grew after the first requests."""
        return max(self.memory) - self.memory[0] if self.memory else 0.0

    @property
    def longest(self) -> float:
        """The longest block in milliseconds, 0 where none was worth writing down."""
        return max((one["ms"] for one in self.blocks), default=0.0)

    def summary(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "sent": self.sent,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "codes": dict(self.codes.most_common()),
            "operations": len(self.operations),
            "findings": [vars(one) for one in self.findings[:50]],
            "memory_mib": self.memory,
            "growth_mib": self.growth,
            "longest_block_ms": self.longest,
            "logged": self.logged[:20],
        }


def fuzz(
    folder: Path,
    settings: dict[str, Any],
    numbers: Sequence[int],
    *,
    seed: int = 0,
    token: str | None = None,
    outages: frozenset[str] = frozenset(),
    module: str = WATCHED,
) -> Report:
    """Send the cases of `numbers` to a coordinator with `settings`, whose files are in `folder`.

    `outages` are codes of what is out in this set-up. `module` is what is run as the coordinator.
    """
    report = Report(seed)
    with coordinator(folder, settings={"bounds": {"memory": MEMORY}, **settings}, module=module) as running:
        with urllib.request.urlopen(f"{running.url}/openapi.json") as answer:  # noqa: S310 - our own coordinator
            grammar = Grammar(json.load(answer), seed, token)
        _send(running, grammar, numbers, outages, report)
    report.missing = [name for name in grammar.operations if name not in report.operations]
    report.blocks = [json.loads(line) for line in (folder / BLOCKS).read_text().splitlines()]
    report.where = (folder / STACKS).read_text()[-LAST:]
    report.logged = _faults((folder / "log").read_text(errors="replace"))
    return report


def _send(running: Running, grammar: Grammar, numbers: Sequence[int], outages: frozenset[str], report: Report) -> None:
    waiting, lock, where = iter(numbers), threading.Lock(), urlsplit(running.url)
    failed: list[BaseException] = []

    def one() -> None:
        wire = Wire(where.hostname or "", where.port or 0)
        try:
            while True:
                with lock:
                    number = next(waiting, None)
                if number is None or failed:
                    return
                case = grammar.case(number)
                answers = wire.exchange(case)
                wrong = findings(case, answers, outages)
                with lock:
                    report.sent += 1
                    report.operations[case.operation] += 1
                    report.statuses.update(answer.status for answer in answers)
                    report.codes.update(code_of(answer) or "" for answer in answers if answer.status >= 400)
                    report.findings += wrong
                    if report.sent >= min(WARM, len(numbers) // 2) and report.sent % LOOK == 0:
                        report.memory.append(_resident(running.pid))
        except BaseException as error:  # told below, in the thread that asked
            failed.append(error)
        finally:
            wire.close()

    threads = [threading.Thread(target=one, daemon=True) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def _resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise BenchmarkError("the coordinator has ended")
    return int(found[1]) / 1024


def _faults(log: str) -> list[str]:
    """Return the errors in a log, each with the last line of its traceback."""
    entries = re.split(r"\n(?=\d{4}-\d\d-\d\d )", log)
    return [
        f"{lines[0]} … {lines[-1]}"
        for entry in entries
        if (lines := entry.strip().splitlines()) and "ERROR" in lines[0]
    ]
