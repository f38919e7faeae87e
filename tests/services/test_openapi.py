"""The OpenAPI document is complete, and the app does what it says: schemathesis over a live coordinator with state."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.services.conftest import Served, bearer, tokens
from tests.services.live import live
from tests.services.posted import CALM, DRIFTED, RUN

STREAM = "/v1/events"
"""It never ends, so nothing waits for its end: tests/services/test_events.py."""
RULES_BETWEEN_FIELDS = {
    ("POST", "/v1/runs"),  # limits that rise
    ("PUT", "/v1/runs/{run}/attempts/{attempt}/steps/{step}/parts/{rank}"),  # lengths that fit each other
    ("PUT", "/v1/media/{digest}"),  # a name that is the content's digest
    ("POST", "/v1/syncs"),  # a source and what belongs to it
    ("POST", "/v1/checks"),  # a step named whole
    ("POST", "/v1/jobs"),  # limits that rise
}
"""What a JSON schema cannot say: here a body that follows the schema may still be refused."""
EXAMPLES = 80
"""Requests to each operation."""


@pytest.mark.slow
def test_every_answer_is_documented(tmp_path: Path) -> None:
    """No answer is a 5xx or has a status, content type or body that the document does not have; bad values are refused,
    and so are callers without a token. Two thirds of the names in paths are of things that are there."""
    known, entries = tokens()
    admin = bearer(known["admin"])
    with live(tmp_path, tokens=entries) as url, httpx.Client(base_url=url, headers=admin) as http:
        there = fill(http)
        document = schemathesis.openapi.from_url(f"{url}/openapi.json").exclude(path=STREAM)
        operations = [found.ok() for found in document.get_all_operations() if isinstance(found, Ok)]
        assert len(operations) > 25
        faults = [fault for operation in operations for fault in explore(operation, there, admin)]
    assert not faults, "\n\n".join(faults)


def fill(http: httpx.Client) -> dict[str, Any]:
    """A run, a sealed step with kept samples, an open one, a sync and a job; their names."""
    records = {"schema": "omni_rl.step/1", "records": DRIFTED}
    steps = "/v1/runs/digits/attempts/1/steps"
    http.post("/v1/runs", json=RUN).raise_for_status()
    http.put(f"{steps}/12/parts/0", json=records).raise_for_status()
    http.post(f"{steps}/12/seal", json={"training": {"reward": 0.5}}).raise_for_status()
    http.put(f"{steps}/13/parts/0", json={**records, "records": CALM}).raise_for_status()
    sync = http.post("/v1/syncs?wait=true", json={}).raise_for_status().json()["sync"]
    body = {"kind": "grpo", "parameters": {"run": "digits", "resume": True}}
    job = http.post("/v1/jobs", json=body).raise_for_status().json()["job"]
    return {"run": "digits", "attempt": 1, "step": 12, "rank": 0, "sample": "a", "sync": sync, "job": job}


def explore(operation: Any, there: dict[str, Any], headers: dict[str, str]) -> list[str]:
    """What an operation does that its document does not say."""
    loose = (operation.method.upper(), operation.path) in RULES_BETWEEN_FIELDS
    excluded = [positive_data_acceptance] if loose else []
    cases = operation.as_strategy(generation_mode=GenerationMode.POSITIVE) | operation.as_strategy(
        generation_mode=GenerationMode.NEGATIVE
    )

    @given(case=cases, known=st.integers(0, 2))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def answers(case: Any, known: int) -> None:
        if known and case.meta.generation.mode == GenerationMode.POSITIVE:
            case.path_parameters |= {name: there[name] for name in case.path_parameters if name in there}
        case.call_and_validate(headers=headers, excluded_checks=excluded, timeout=30)

    try:
        answers()
    except (FailureGroup, Failure) as error:
        return [f"{operation.method.upper()} {operation.path}: {error}"]
    return []


@pytest.mark.anyio
async def test_the_document_is_complete(served: Served) -> None:
    document = (await served.http.get("/openapi.json")).json()
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) > 25
    for method, path, operation in operations:
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        assert any(status.startswith("2") for status in operation["responses"])
        for status, response in operation["responses"].items():
            assert response["description"], (method, path, status)
            if status[0] in "45" and path != "/readyz":
                assert "application/problem+json" in response["content"], (method, path, status)
        if path not in ("/healthz", "/readyz", "/v1/session"):
            assert operation["security"] == [{"token": []}, {"session": []}], (method, path)


@pytest.mark.anyio
async def test_every_body_has_an_example_that_is_taken(served: Served) -> None:
    document = (await served.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    bodies = {name: found for name, found in schemas.items() if name.endswith(("Body", "Parameters"))}
    lacking = [name for name, found in bodies.items() if "examples" not in found]
    assert lacking == ["GrpoBody", "PpoBody"]  # their parameters have one
    (run,) = schemas["RunBody"]["examples"]
    assert (await served.http.post("/v1/runs", json=run)).status_code == 201
    part = document["paths"]["/v1/runs/{run}/attempts/{attempt}/steps/{step}/parts/{rank}"]["put"]
    records = part["requestBody"]["content"]["application/json"]["example"]
    step = f"/v1/runs/{run['run']}/attempts/1/steps/12"
    assert (await served.http.put(f"{step}/parts/0", json=records)).status_code == 200
    (seal,) = schemas["SealBody"]["examples"]
    assert (await served.http.post(f"{step}/seal", json={**seal, "parts": 1})).status_code == 200
    (grpo,) = schemas["GrpoParameters"]["examples"]
    again = {**grpo, "resume": True}  # the run of the example is there by now
    assert (await served.http.post("/v1/jobs", json={"kind": "grpo", "parameters": again})).status_code == 201
    (sync,) = schemas["SyncBody"]["examples"]
    assert (await served.http.post("/v1/syncs?wait=true", json=sync)).status_code == 200
