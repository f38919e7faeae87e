"""Every route of the API asks for a token whose scope reaches that far."""

from typing import Any

import pytest

from omni_rl.api.state import Scope
from tests.services.conftest import Serve, Served, bearer, tokens
from tests.services.posted import RUN, STEP

pytestmark = pytest.mark.anyio


ROUTES: list[tuple[str, str, str, dict[str, Any] | None]] = [
    ("GET", "/v1/session", "read", None),
    ("GET", "/v1/state", "read", None),
    ("GET", "/v1/runs", "read", None),
    ("GET", "/v1/runs/digits", "read", None),
    ("GET", "/v1/runs/digits/steps", "read", None),
    ("GET", "/v1/runs/digits/timeline", "read", None),
    ("GET", "/v1/runs/digits/limits", "read", None),
    ("GET", "/v1/runs/digits/alarms", "read", None),
    ("GET", "/v1/runs/digits/attempts", "read", None),
    ("GET", "/v1/incidents", "read", None),
    ("GET", "/v1/incidents/7", "read", None),
    ("POST", "/v1/incidents/7/acknowledge", "sync", None),
    ("POST", "/v1/incidents/7/notes", "sync", {"text": "mine"}),
    ("POST", "/v1/incidents/7/end", "sync", None),
    ("GET", "/v1/runs/digits/updates", "read", None),
    ("GET", STEP, "read", None),
    ("GET", f"{STEP}/samples/a", "read", None),
    ("GET", "/v1/syncs", "read", None),
    ("GET", "/v1/syncs/abc", "read", None),
    ("GET", "/v1/checks", "read", None),
    ("GET", "/v1/checks/7", "read", None),
    ("GET", "/v1/jobs", "read", None),
    ("GET", "/v1/jobs/abc", "read", None),
    ("GET", "/v1/jobs/abc/logs", "read", None),
    ("GET", "/v1/events/page", "read", None),
    ("GET", f"/v1/media/{'0' * 64}", "read", None),
    ("GET", "/metrics", "read", None),
    ("POST", "/v1/runs", "sync", RUN),
    ("POST", "/v1/runs/digits/end", "sync", None),
    ("PUT", f"{STEP}/parts/0", "sync", {}),
    ("POST", f"{STEP}/seal", "sync", {}),
    ("PUT", f"{STEP}/training", "sync", {"training": {}}),
    ("PUT", "/v1/runs/digits/updates/12", "sync", {}),
    ("PUT", "/v1/runs/digits/engines/e0/updates/12", "sync", {}),
    ("PUT", f"/v1/media/{'0' * 64}", "sync", {}),
    ("POST", "/v1/syncs", "sync", {}),
    ("POST", "/v1/checks", "sync", {}),
    ("POST", "/v1/pause", "admin", {"reason": "x"}),
    ("POST", "/v1/resume", "admin", None),
    ("POST", "/v1/jobs", "admin", {"kind": "grpo", "parameters": {"run": "digits"}}),
    ("DELETE", "/v1/jobs/abc", "admin", None),
]


OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("POST", "/v1/session"), ("DELETE", "/v1/session")}


@pytest.mark.parametrize(("method", "path", "scope", "body"), ROUTES)
async def test_every_route_asks_for_its_scope(serve: Serve, method: str, path: str, scope: str, body: Any) -> None:
    known, entries = tokens()
    async with serve(tokens=entries) as served:
        nobody = await served.http.request(method, path, json=body)
        assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthenticated")
        assert nobody.headers["www-authenticate"] == "Bearer"
        stranger = await served.http.request(method, path, json=body, headers=bearer("orl_wrong"))
        assert stranger.status_code == 401
        for have in Scope:
            answer = await served.http.request(method, path, json=body, headers=bearer(known[have]))
            assert (answer.status_code == 403) == (not have.covers(Scope(scope))), (have, answer.text)


async def test_the_table_above_is_complete(served: Served) -> None:
    document = (await served.http.get("/openapi.json")).json()
    there = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    templates = {
        (method, path.replace("digits", "{run}").replace("/1/steps/12", "/{attempt}/steps/{step}"))
        for method, path, _, _ in ROUTES
    }
    named = {
        (
            method,
            path.replace("parts/0", "parts/{rank}")
            .replace("samples/a", "samples/{sample}")
            .replace("engines/e0", "engines/{engine}")
            .replace("updates/12", "updates/{update}")
            .replace("syncs/abc", "syncs/{sync}")
            .replace("checks/7", "checks/{check}")
            .replace("incidents/7", "incidents/{incident}")
            .replace("jobs/abc", "jobs/{job}")
            .replace("0" * 64, "{digest}"),
        )
        for method, path in templates
    }
    assert there == named | OPEN | {("GET", "/v1/events")}


async def test_events_need_a_token_too(serve: Serve) -> None:
    _, entries = tokens()
    async with serve(tokens=entries) as served:
        assert (await served.http.get("/v1/events")).status_code == 401
