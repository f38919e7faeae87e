"""Sessions of browsers: a cookie in place of a token, for as long as it lasts."""

import pytest
from omni_rl_services.coordinator.auth import MAX_SESSIONS, Caller, Sessions

from omni_rl.api.state import Scope
from tests.services.conftest import Serve, Served, tokens

pytestmark = pytest.mark.anyio


async def test_a_coordinator_without_tokens_says_that_it_is_open(served: Served) -> None:
    mine = {"name": "local", "scope": "admin", "open": True}
    assert (await served.http.post("/v1/session", json={"token": "any"})).json() == mine
    assert (await served.http.get("/v1/session")).json() == mine


async def test_a_session_cookie_for_browsers(serve: Serve) -> None:
    known, entries = tokens()
    async with serve(tokens=entries) as served:
        assert (await served.http.post("/v1/session", json={"token": "orl_wrong"})).status_code == 401
        answer = await served.http.post("/v1/session", json={"token": known["sync"]})
        assert answer.json() == {"name": "sync-er", "scope": "sync", "open": False}
        cookie = answer.headers["set-cookie"]
        for flag in ("HttpOnly", "SameSite=strict", "Max-Age=28800", "Path=/"):
            assert flag in cookie
        assert known["sync"] not in cookie
        assert (await served.http.get("/v1/session")).json()["name"] == "sync-er"
        assert (await served.http.post("/v1/resume")).status_code == 403
        assert (await served.http.delete("/v1/session")).status_code == 204
        served.http.cookies.clear()
        assert (await served.http.get("/v1/state")).status_code == 401


async def test_behind_tls_the_cookie_goes_over_tls_alone(serve: Serve) -> None:
    known, entries = tokens()
    async with serve(tokens=entries, secure_cookies=True) as served:
        answer = await served.http.post("/v1/session", json={"token": known["read"]})
        assert "Secure" in answer.headers["set-cookie"]


async def test_a_session_that_ended_is_no_key(serve: Serve) -> None:
    known, entries = tokens()
    async with serve(tokens=entries) as served:
        await served.http.post("/v1/session", json={"token": known["read"]})
        stolen = served.http.cookies["omni_rl_session"]
        await served.http.delete("/v1/session")
        answer = await served.http.get("/v1/state", headers={"Cookie": f"omni_rl_session={stolen}"})
        assert answer.status_code == 401


def test_sessions_end_and_are_bounded() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    caller = Caller("ann", Scope.READ)
    first = sessions.begin(caller)
    assert sessions.caller(first) == caller
    for _ in range(MAX_SESSIONS):
        last = sessions.begin(caller)
    assert sessions.caller(first) is None
    now[0] = 8 * 3600
    assert sessions.caller(last) is None
