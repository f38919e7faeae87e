"""One line of the report."""

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class DoctorFinding:
    """What was found about one item of the machine. `fix` is empty where there is nothing to do."""

    item: str
    level: Level
    detail: str
    fix: str = ""


def installed(name: str) -> str | None:
    """Return the installed version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
