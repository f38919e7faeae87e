"""The app does what its OpenAPI document says: schemathesis over a live coordinator with state."""

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

from tests.services.conftest import bearer, tokens
from tests.services.live import live
from tests.services.posted import CALM, DRIFTED, RUN

pytestmark = pytest.mark.slow
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
