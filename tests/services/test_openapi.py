"""The OpenAPI document is complete. The app does what it says: tests/services/test_documented_answers.py."""

import pytest

from tests.services.conftest import Served


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
