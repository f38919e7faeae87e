"""Faults that real teams reported, posted to a coordinator by itself, on both databases: severity and cause are right.

The same through the records alone, and other members of each kind: tests/consistency/posted.
"""

import json
from functools import cache
from typing import Any

import pytest

from tests.cases.cases import cases
from tests.cases.world import Case
from tests.services.conftest import Serve, Served

JSON = {"Content-Type": "application/json"}


@cache
def every() -> list[Case]:
    return list(cases())


async def last_verdict(served: Served, run: str, case: Case) -> tuple[str, dict[str, Any]]:
    """The severity of the last step, "refused" where a part or a seal was, and the whole answer."""
    await served.http.post("/v1/runs", json={"run": run, "model": "synthetic", "dtype": case.dtype})
    found: dict[str, Any] = {}
    for step, parts in enumerate(case.steps):
        attempt = 1 if case.attempts is None else case.attempts[step]
        at = f"/v1/runs/{run}/attempts/{attempt}/steps/{step}"
        for rank, rows in enumerate(parts):
            document = {"schema": "omni_rl.step/1", "records": rows}
            answer = await served.http.put(f"{at}/parts/{rank}", content=json.dumps(document), headers=JSON)
            if answer.status_code == 422:
                return "refused", answer.json()
        answer = await served.http.post(f"{at}/seal", json={"parts": len(parts)})
        if answer.status_code == 422:
            return "refused", answer.json()
        assert answer.status_code == 200, answer.text
        found = answer.json()
    return found["severity"], found


@pytest.mark.anyio
async def test_every_posted_case_has_its_severity_and_its_cause(serve: Serve, ledger_url: str) -> None:
    wrong = []
    async with serve(ledger=ledger_url) as served:
        for number, case in enumerate(every()):
            severity, found = await last_verdict(served, f"case-{number}", case)
            if severity not in case.severity or (
                severity != "refused" and case.cause and found["cause"] not in case.cause
            ):
                wrong.append((case.name, severity, found.get("cause"), found.get("sentence")))
            if severity not in ("ok", "unjudged", "refused"):
                assert found["sentence"], case.name
    assert not wrong
