"""Who may do what, what is refused before a route sees it, and what never leaks."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from omni_rl_services.coordinator.auth import MAX_SESSIONS, Caller, Sessions, Tokens, new_token
from omni_rl_services.coordinator.settings import Bounds, CoordinatorSettings, TokenEntry

from omni_rl.api.runs import LIMITED
from omni_rl.api.state import Scope
from omni_rl.errors import ConfigError
from omni_rl.kinds import KINDS
from tests.services.conftest import Serve, Served
from tests.services.test_steps import RUN

pytestmark = pytest.mark.anyio
STEP = "/v1/runs/digits/attempts/1/steps/12"


def tokens() -> tuple[dict[str, str], tuple[TokenEntry, ...]]:
    """A token of each scope, and how they are kept."""
    made = {scope: new_token() for scope in Scope}
    entries = tuple(TokenEntry(name=f"{scope}-er", scope=scope, sha256=kept) for scope, (_, kept) in made.items())
    return {str(scope): token for scope, (token, _) in made.items()}, entries


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


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


def nested(depth: int) -> bytes:
    return b'{"reason": ' + b'{"a": [' * depth + b"0" + b"]}" * depth + b"}"


@pytest.mark.parametrize("depth", [100, 300, 450, 10_000])
async def test_a_body_that_is_nested_too_deep_is_refused(served: Served, depth: int) -> None:
    json_type = {"Content-Type": "application/json"}
    refused = await served.http.post("/v1/pause", content=nested(depth), headers=json_type)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    "more",
    [
        {"kinds": [0] * 4_000},
        {"kinds": [0] * 300_000},
        {"limits": {f"k{n}": {"a": 0} for n in range(2_000)}},
        {"limits": {f"k{n}": {} for n in range(60_000)}},
        {"limits": {f"k{n}": {} for n in range(7_000)}},
        {f"k{n}": 0 for n in range(5_000)},
        {"k" * 500_000: 0},
    ],
)
async def test_of_many_bad_values_not_every_one_is_told(served: Served, more: dict[str, Any]) -> None:
    """Else a megabyte is answered with thirty, and the event loop stands for seconds."""
    refused = await served.http.post("/v1/runs", json={**RUN, "run": "other", **more})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert len(refused.content) < 20_000


async def test_the_largest_run_there_may_be_is_described(served: Served) -> None:
    kinds = [f"kind-{n}" for n in range(32)]
    limits = {"warn": 1.5, "mask": 2.0, "pause": 3.0}
    buckets = ("overall", "mixed_state", *KINDS, *kinds)
    described = {
        **RUN,
        "run": "large",
        "kinds": kinds,
        "limits": {one: dict.fromkeys(LIMITED, limits) for one in buckets},
    }
    made = await served.http.post("/v1/runs", json=described)
    assert made.status_code == 201, made.text


async def test_every_whole_number_that_is_sent_has_a_bound(served: Served) -> None:
    """No database keeps larger ones than 64 bits, and no browser counts beyond 2**53."""
    document = (await served.http.get("/openapi.json")).json()
    unbounded: set[str] = set()

    def look(schema: Any, where: str) -> None:
        if isinstance(schema, list):
            for one in schema:
                look(one, where)
        elif isinstance(schema, dict):
            if "$ref" in schema:
                name = schema["$ref"].rpartition("/")[2]
                if name not in seen:
                    seen.add(name)
                    look(document["components"]["schemas"][name], name)
            if schema.get("type") == "integer" and schema.get("maximum", 2**64) > 2**53:
                unbounded.add(where)
            for key, one in schema.get("properties", {}).items():
                look(one, key)
            for key in ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties", "patternProperties"):
                look(schema.get(key), where)

    seen = {"Records"}  # its columns are held to their own types
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                look(parameter["schema"], parameter["name"])
            for body in operation.get("requestBody", {}).get("content", {}).values():
                look(body["schema"], "body")
    assert unbounded == set()


@pytest.mark.parametrize("number", [2**31, 2**63, 10**400], ids=["2**31", "2**63", "10**400"])
async def test_a_check_of_a_step_beyond_all_is_refused(served: Served, number: int) -> None:
    for body in ({"run": "digits", "attempt": 1, "step": number}, {"run": "digits", "attempt": number, "step": 1}):
        await served.http.post("/v1/runs", json=RUN)
        refused = await served.http.post("/v1/checks", json=body)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


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


def test_tokens_are_kept_as_hashes_only() -> None:
    token, kept = new_token()
    entry = TokenEntry(name="ann", scope=Scope.READ, sha256=kept)
    assert token not in entry.model_dump_json()
    known = Tokens(CoordinatorSettings(tokens=(entry,)))
    assert known.caller(token) == Caller("ann", Scope.READ)
    assert known.caller(token + "x") is None
    assert len(token) >= 40


async def test_tokens_are_in_no_log_and_no_answer(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    known, entries = tokens()
    secret = known["admin"]
    answers = []
    with caplog.at_level(logging.DEBUG):
        async with serve(tokens=entries) as served:
            answers.append(await served.http.get("/v1/state", headers=bearer(secret)))
            answers.append(await served.http.post("/v1/session", json={"token": secret, "surprise": secret}))
            answers.append(await served.http.post("/v1/session", json={"token": [secret]}))
            answers.append(await served.http.post("/v1/session", json={"token": secret * 9}))
            answers.append(await served.http.post("/v1/session", content=f'{{"token": "{secret}"'.encode()))
            answers.append(await served.http.get("/v1/state", headers={"Authorization": f"Basic {secret}"}))
            answers.append(await served.http.get("/metrics", headers=bearer(secret)))
    assert [answer.status_code for answer in answers] == [200, 422, 422, 422, 422, 401, 200]
    assert secret not in caplog.text
    assert all(secret not in answer.text for answer in answers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "localhost:8400", "Origin": "http://localhost:8400"}, 200),
        ({"Host": "[::1]:8400"}, 200),
    ],
)
async def test_another_sites_page_can_do_nothing(served: Served, headers: dict[str, str], status: int) -> None:
    answer = await served.http.post("/v1/syncs?wait=true", json={}, headers=headers)
    assert answer.status_code == status, answer.text


async def test_a_name_that_is_none_is_refused_with_tokens_too(serve: Serve) -> None:
    known, entries = tokens()
    async with serve(tokens=entries) as served:
        headers = {**bearer(known["admin"]), "Origin": "http://["}
        answer = await served.http.post("/v1/syncs?wait=true", json={}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "content-security-policy" in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/runs/a%00b", None),
        ("GET", "/v1/runs?search=%00", None),
        ("POST", "/v1/runs", {"run": "digits", "model": "a\0b", "dtype": "bfloat16", "framework": "trl"}),
        ("POST", "/v1/pause", {"reason": "\0"}),
    ],
)
async def test_a_nul_is_refused_wherever_it_stands(served: Served, method: str, path: str, body: Any) -> None:
    answer = await served.http.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "NUL" in answer.json()["detail"]


async def test_a_rebound_name_may_not_even_read(served: Served) -> None:
    answer = await served.http.get("/v1/state", headers={"Host": "rebound.example"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_with_tokens_any_name_will_do(serve: Serve) -> None:
    known, entries = tokens()
    async with serve(tokens=entries) as served:
        headers = {**bearer(known["read"]), "Host": "omni.example"}
        assert (await served.http.get("/v1/state", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/state", "/healthz", "/nowhere", "/v1/runs/none", "/metrics", "/openapi.json"])
async def test_strict_headers_on_every_answer(served: Served, path: str) -> None:
    headers = (await served.http.get(path)).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


SMALL = Bounds(body=1000, part=3000, json_part=2000, media=2500)


@pytest.mark.parametrize(
    ("path", "content_type", "limit"),
    [
        ("/v1/runs", "application/json", 1000),
        (f"{STEP}/parts/0", "application/json", 2000),
        (f"{STEP}/parts/0", "application/vnd.apache.arrow.stream", 3000),
        (f"/v1/media/{'0' * 64}", "image/png", 2500),
    ],
)
@pytest.mark.parametrize("announced", [True, False])
async def test_bodies_are_bounded(serve: Serve, path: str, content_type: str, limit: int, announced: bool) -> None:
    method = "POST" if path == "/v1/runs" else "PUT"
    headers = {"Content-Type": content_type}
    async with serve(bounds=SMALL) as served:
        await served.http.post("/v1/runs", json=RUN)

        async def send(size: int) -> Any:
            body = b" " * size

            async def pieces() -> Any:
                yield body[: size // 2]
                yield body[size // 2 :]

            content = body if announced else pieces()
            return await served.http.request(method, path, content=content, headers=headers)

        assert (await send(limit)).status_code != 413
        refused = await send(limit + 1)
        assert (refused.status_code, refused.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "omni.example"])
def test_without_a_token_no_other_machine_is_let_near(host: str) -> None:
    with pytest.raises(ConfigError, match=r"tokens are needed.*127\.0\.0\.1"):
        CoordinatorSettings(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    assert CoordinatorSettings(host=host).all_tokens() == ()


def test_a_tokens_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    settings = CoordinatorSettings(host="0.0.0.0", tokens_file=path)
    with pytest.raises(ConfigError, match="cannot be read"):
        settings.all_tokens()
    _, kept = new_token()
    path.write_text(json.dumps([{"name": "ann", "scope": "admin", "sha256": kept}]))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        settings.all_tokens()
    path.chmod(0o600)
    assert [entry.name for entry in settings.all_tokens()] == ["ann"]
    wrong = ((b"{", "not JSON"), (b"\xff", "not JSON"), (b"{}", "a list"), (b"[]", "no token"))
    for content, named in (*wrong, (b'[{"name": "ann"}]', "scope")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=named):
            settings.all_tokens()


async def test_a_tokens_file_that_was_refused_is_read_once_it_is_its_owners_alone(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens.json"
    entries = [{"name": name, "scope": "read", "sha256": new_token()[1]} for name in ("ann", "bob")]
    token, entries[0]["sha256"] = new_token()
    path.write_text(json.dumps(entries))
    path.chmod(0o600)
    async with serve(tokens_file=path) as served:
        edited = tmp_path / "edited.json"  # as editors write, by another umask
        edited.write_text(json.dumps(entries[1:]))
        edited.chmod(0o644)
        edited.replace(path)
        for _ in range(3):
            assert (await served.http.get("/v1/session", headers=bearer(token))).status_code == 200
        path.chmod(0o600)
        assert (await served.http.get("/v1/session", headers=bearer(token))).status_code == 401
    assert caplog.text.count("the tokens stay as they were") == 1


async def test_an_error_of_our_own_tells_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as served:

        async def broken(*_: object) -> None:
            raise RuntimeError("the password is hunter2")

        monkeypatch.setattr(served.bridge, "check", broken)
        answer = await served.http.post("/v1/checks", json={})
        assert (answer.status_code, answer.json()["code"]) == (500, "omni_rl_error")
        assert answer.json()["title"] == "The coordinator failed."
        assert "hunter2" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
