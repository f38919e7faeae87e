"""Reads JSON objects, a line each, with the place of each: errors in a dump name file and line."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_rl.errors import RecordError
from omni_rl.ledger.records import LIMITS, StepRecords
from omni_rl.ledger.schema import RecordLimits

Located = tuple[str, Mapping[str, Any]]
"""A file and line, as an error names it, and the object that stands there."""

STANDARD_INPUT = Path("standard input")
"""The path that stands for the process's standard input, as an error names it."""
SHOWN = 60
"""The most characters of a value in an error."""


def read_bytes(path: Path) -> bytes:
    """Return a file's content, or what standard input has. Raises `RecordError` if it cannot be read, or is empty."""
    try:
        content = sys.stdin.buffer.read() if path is STANDARD_INPUT else path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from None
    if not content.strip():
        raise RecordError(f"{path} is empty")
    return content


def objects(path: Path, content: bytes) -> Iterator[Located]:
    """Yield the objects of JSON lines; blank lines are skipped.

    Raises:
        RecordError: A line is no JSON object; the error names the line's number.
    """
    # Lines end with \n alone: JSON may hold U+2028 and its like as they are, at which str.splitlines would cut.
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise RecordError(f"{where}: not JSON; was the file cut off?") from None
        if not isinstance(row, dict):
            raise RecordError(f"{where}: a JSON object is expected, not {type(row).__name__}")
        yield where, row


def checked(path: Path, located: Sequence[Located], limits: RecordLimits = LIMITS) -> StepRecords:
    """Return records of the published schema.

    Raises:
        RecordError: Records do not follow the schema; the error names file and line where a single record does not.
    """
    try:
        return StepRecords.of([row for _, row in located], limits)
    except RecordError as error:
        for where, row in located:
            try:
                StepRecords.of([row], limits)
            except RecordError as alone:
                raise RecordError(f"{where}: {str(alone).removeprefix('row 0, ').removeprefix('row 0: ')}") from None
        raise RecordError(f"{path}: {error}") from None


def shortened(value: Any) -> str:
    """Return a value as an error shows it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
