"""Defines the one shape of a result file: what was run, where, which goals it met, and all figures."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from omni_rl.errors import OmniRLError
from omni_rl_bench.machine import machine

SCHEMA = 1


class BenchmarkError(OmniRLError, RuntimeError):
    """A measured command failed, so there is no result."""

    code = "benchmark_failed"


@dataclass(frozen=True)
class Goal:
    """A figure and the bar that it must reach: at least the bar (`higher` is better) or at most (`lower`)."""

    name: str
    value: float
    bar: float
    better: Literal["higher", "lower"]

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar


def write_result(path: Path, command: str, goals: Sequence[Goal], results: dict[str, Any]) -> Path:
    """Write one result file and return its path."""
    content = {
        "schema": SCHEMA,
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def commit() -> str:
    """Return the commit of the checkout that this package runs from, "+" where files differ from it; "" outside of
    one."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)  # noqa: S607
        changed = subprocess.run(["git", "status", "--porcelain", "-uno", "."], cwd=here.parent, capture_output=True)  # noqa: S607
    except FileNotFoundError:
        return ""
    return head.stdout.strip() + ("+" if head.returncode == 0 and changed.stdout else "")


def goal_lines(directory: Path) -> list[str]:
    """Return the goals of every result file in `directory` that has any, as lines of a table."""
    rows = [("benchmark", "goal", "value", "bar", "met")]
    for path in sorted(directory.glob("*.json")):
        for goal in json.loads(path.read_text()).get("goals", []):
            bar = f"{'>=' if goal['better'] == 'higher' else '<='} {goal['bar']:g}"
            rows.append((path.stem, goal["name"], f"{goal['value']:.3g}", bar, "yes" if goal["met"] else "NO"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
