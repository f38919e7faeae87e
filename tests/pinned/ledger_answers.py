"""What a user reads of a ledger: the coordinator's answers by path, without what is of the moment of asking."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq

from omni_rl.ledger.export import export
from omni_rl.ledger.ledger import Ledger

OF_THE_MOMENT = ("version", "started", "cluster")
"""Of the coordinator's state: they are no part of the ledger."""
WHOLE = ("steps", "syncs", "checks")
"""Tables of an export whose rows are compared; the others' are in other answers already."""


def answers(address: str, paths: Iterable[str]) -> dict[str, Any]:
    """The answer to a GET of each path."""
    found = {}
    with httpx.Client(base_url=address, timeout=30) as http:
        for path in paths:
            answer = http.get(path)
            assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
            found[path] = _lasting(answer.json()) if path == "/v1/state" else answer.json()
    return found


def exported(url: str, run: str, directory: Path) -> dict[str, Any]:
    """Of each file of an export its columns with their types, how many rows it has, and the rows of `WHOLE`."""
    with Ledger.open(url) as ledger:
        paths = export(ledger, run, directory)
    found = {}
    for path in paths:
        table = pq.read_table(path)
        columns = {field.name: str(field.type) for field in table.schema}
        found[path.stem] = {"columns": columns, "rows": len(table)}
        if path.stem in WHOLE:
            found[path.stem]["content"] = table.to_pylist()
    return found


def _lasting(state: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in state.items() if name not in OF_THE_MOMENT}
    for hold in kept["gate"]["holds"]:
        del hold["since"]  # when this coordinator took it up
    del kept["gate"]["confirmed"]
    kept["alarms"].sort(key=lambda alarm: int(alarm["alarm"]))  # their order is that in which runs were looked at
    return kept
