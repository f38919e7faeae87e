"""Which token counts, who is let near without one, and what never leaks."""

import json
import logging
from pathlib import Path

import pytest
from omni_rl_services.coordinator.auth import Caller, Tokens, new_token
from omni_rl_services.coordinator.settings import CoordinatorSettings, TokenEntry

from omni_rl.api.state import Scope
from omni_rl.errors import ConfigError
from tests.services.conftest import Serve, Served, bearer, tokens

pytestmark = pytest.mark.anyio


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


@pytest.mark.parametrize("path", ["/v1/state", "/healthz", "/nowhere", "/v1/runs/none", "/metrics", "/openapi.json"])
async def test_strict_headers_on_every_answer(served: Served, path: str) -> None:
    headers = (await served.http.get(path)).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


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
