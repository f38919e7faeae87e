"""Faults that real teams reported: severity and cause are right, of the records alone and of a coordinator on both
databases that they are posted to.

The cases take seconds to make, so both are here. Other members of each kind: tests/consistency/posted.
"""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

from omni_rl.ledger.records import StepRecords
from tests.cases.cases import cases
from tests.cases.judged import Judge
from tests.cases.world import Case, Row, World, records
from tests.services.conftest import Serve, Served
from tests.services.posted import ARROW

JSON = {"Content-Type": "application/json"}


@cache
def every() -> list[tuple[Case, list[list[bytes]]]]:
    """Each case, and the bodies of each step's parts: encoded once, they are posted to both databases."""
    return [(case, [[_body(rows) for rows in parts] for parts in case.steps]) for case in cases()]


def _body(rows: list[Row]) -> bytes:
    return json.dumps({"schema": "omni_rl.step/1", "records": rows}).encode()


async def last_verdict(served: Served, run: str, case: Case, steps: list[list[bytes]]) -> tuple[str, dict[str, Any]]:
    """The severity of the last step, "refused" where a part or a seal was, and the whole answer."""
    await served.http.post("/v1/runs", json={"run": run, "model": "synthetic", "dtype": case.dtype})
    found: dict[str, Any] = {}
    for step, parts in enumerate(steps):
        attempt = 1 if case.attempts is None else case.attempts[step]
        at = f"/v1/runs/{run}/attempts/{attempt}/steps/{step}"
        for rank, body in enumerate(parts):
            answer = await served.http.put(f"{at}/parts/{rank}", content=body, headers=JSON)
            if answer.status_code == 422:
                return "refused", answer.json()
        answer = await served.http.post(f"{at}/seal", json={"parts": len(parts)})
        if answer.status_code == 422:
            return "refused", answer.json()
        assert answer.status_code == 200, answer.text
        found = answer.json()
    return found["severity"], found


@pytest.mark.anyio
async def test_likeliest_ids_and_entropies_come_in_either_form_and_name_the_cause(
    serve: Serve, ledger_url: str
) -> None:
    """Guided at twelve of 512 tokens: the ids that could not be sampled tell it, and nothing else does."""
    world = World(8, 8, 64, 200)
    free = world.rng.random((8, 64, 1)) >= 0.02
    allowed = world.rng.random(world.shape) < 0.02
    allowed[..., :2] = True
    engine = np.where(free | allowed, world.engine(world.logits), -np.inf)
    ids = world.sample(engine)
    first = np.argsort(-engine, -1, kind="stable")[..., :8]
    flat = np.take_along_axis(engine - np.logaddexp.reduce(engine, -1)[..., None], first, -1)
    more: dict[str, Any] = {
        "rollout_top_ids": list(first.reshape(8, -1)),
        "rollout_top_logprobs": list(flat.reshape(8, -1)),
        "rollout_entropy": list(np.full((8, 64), 1.5)),
        "train_entropy": list(np.full((8, 64), 2.5)),
    }
    rollout, train = world.logprobs(engine, ids), world.logprobs(world.logits, ids)
    plain, rows = records(rollout, train, ids), records(rollout, train, ids, **more)
    document = {"schema": "omni_rl.step/1", "records": rows}
    bodies = [
        (json.dumps({**document, "records": plain}).encode(), JSON),
        (json.dumps(document).replace("-Infinity", "null").encode(), JSON),
        (StepRecords.of(rows).to_arrow(), {"Content-Type": ARROW}),
    ]
    async with serve(ledger=ledger_url) as served:
        await served.http.post("/v1/runs", json={"run": "top", "model": "synthetic", "dtype": "bfloat16"})
        causes = []
        for step, (body, headers) in enumerate(bodies):
            at = f"/v1/runs/top/attempts/1/steps/{step}"
            assert (await served.http.put(f"{at}/parts/0", content=body, headers=headers)).status_code == 200
            causes.append((await served.http.post(f"{at}/seal", json={})).json()["cause"])
        assert causes == ["unknown", "sampling_support", "sampling_support"]
        rows[0]["train_entropy"] = rows[0]["train_entropy"][:-1]
        answer = await served.http.put(
            "/v1/runs/top/attempts/1/steps/9/parts/0", content=json.dumps(document), headers=JSON
        )
        assert answer.status_code == 422
        assert "column train_entropy: has 63 values, rollout_logprobs has 64" in answer.text


def test_the_records_of_every_case_alone_have_its_severity_and_its_cause() -> None:
    wrong = []
    for case, _ in every():
        judge = Judge(case.dtype)
        found = [judge.rows(*parts) for parts in case.steps][-1]
        if found.severity.label not in case.severity or (case.cause and found.cause not in case.cause):
            wrong.append((case.name, found.severity.label, found.cause, found.sentence))
    assert not wrong


@pytest.mark.anyio
async def test_every_posted_case_has_its_severity_and_its_cause(serve: Serve, ledger_url: str) -> None:
    wrong = []
    async with serve(ledger=ledger_url) as served:
        for number, (case, steps) in enumerate(every()):
            severity, found = await last_verdict(served, f"case-{number}", case, steps)
            if severity not in case.severity or (
                severity != "refused" and case.cause and found["cause"] not in case.cause
            ):
                wrong.append((case.name, severity, found.get("cause"), found.get("sentence")))
            if severity not in ("ok", "unjudged", "refused"):
                assert found["sentence"], case.name
    assert not wrong
