"""Tokens and sessions by themselves: whose they are, when they end, and which counts."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from omni_rl_services.coordinator.auth import (
    LOCAL,
    Caller,
    Sessions,
    Tokens,
    caller_of,
    hash_token,
    new_token,
)
from omni_rl_services.coordinator.settings import CoordinatorSettings, TokenEntry

from omni_rl.api.state import Scope
from omni_rl.errors import ConfigError
from tests.services.conftest import Serve, bearer

ANN = Caller("ann", Scope.READ)
DAY = 8 * 3600


def entry(name: str, scope: Scope = Scope.READ) -> tuple[str, TokenEntry]:
    token, kept = new_token()
    return token, TokenEntry(name=name, scope=scope, sha256=kept)


def write(path: Path, *entries: TokenEntry) -> None:
    """Replace a tokens file, as those who write one do."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps([json.loads(one.model_dump_json()) for one in entries]))
    fresh.chmod(0o600)
    fresh.replace(path)


def test_a_hash_is_sha256_in_hex() -> None:
    assert hash_token("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    token, kept = new_token()
    assert kept == hash_token(token)
    assert token.startswith("orl_")
    # 32 random bytes are 43 characters of base64.
    assert len(token) == 4 + 43
    assert new_token()[0] != token


@pytest.mark.parametrize(("seconds", "open_"), [(0, True), (DAY - 1, True), (DAY, False), (DAY + 1, False)])
def test_a_session_lasts_for_a_working_day(seconds: float, open_: bool) -> None:
    now = [5.0]
    sessions = Sessions(lambda: now[0])
    session = sessions.begin(ANN)
    now[0] += seconds
    assert (sessions.caller(session) == ANN) is open_
    now[0] = 5.0
    assert (sessions.caller(session) == ANN) is open_, "what ended does not begin again"


def test_the_oldest_of_1025_sessions_ends() -> None:
    sessions = Sessions(lambda: 0.0)
    names = [sessions.begin(ANN) for _ in range(1024)]
    assert all(sessions.caller(name) for name in names)
    names.append(sessions.begin(ANN))
    assert [sessions.caller(name) for name in names[:3]] == [None, ANN, ANN]
    assert sessions.caller(names[-1]) == ANN
    assert len(set(names)) == 1025
    assert {len(name) for name in names} == {43}


def test_a_session_is_ended_by_its_own_name_alone() -> None:
    sessions = Sessions(lambda: 0.0)
    first, second = sessions.begin(ANN), sessions.begin(Caller("bob", Scope.ADMIN))
    sessions.end("nobody's")
    sessions.end(first)
    sessions.end(first)
    assert (sessions.caller(first), sessions.caller(second)) == (None, Caller("bob", Scope.ADMIN))


def test_each_token_is_its_own_holders_wherever_it_stands() -> None:
    made = [entry(name, scope) for name, scope in (("a", Scope.READ), ("b", Scope.SYNC), ("c", Scope.ADMIN))]
    tokens = Tokens(CoordinatorSettings(tokens=tuple(kept for _, kept in made)))
    assert bool(tokens)
    assert [tokens.caller(token) for token, _ in made] == [
        Caller("a", Scope.READ),
        Caller("b", Scope.SYNC),
        Caller("c", Scope.ADMIN),
    ]
    assert tokens.caller("orl_") is tokens.caller("") is None
    assert tokens.includes(Caller("b", Scope.SYNC))
    assert not tokens.includes(Caller("b", Scope.ADMIN))
    assert not tokens.includes(Caller("d", Scope.READ))


def test_who_asks_is_told_by_the_token_before_the_cookie() -> None:
    (ann, first), (bob, second) = entry("ann"), entry("bob", Scope.ADMIN)
    tokens, sessions = Tokens(CoordinatorSettings(tokens=(first, second))), Sessions(lambda: 0.0)
    session = sessions.begin(Caller("bob", Scope.ADMIN))
    cases: list[tuple[str | None, str | None, Caller | None]] = [
        (None, None, None),
        (ann, None, ANN),
        (None, session, Caller("bob", Scope.ADMIN)),
        (ann, session, ANN),
        ("wrong", session, None),
        ("", session, None),
        (bob, "wrong", Caller("bob", Scope.ADMIN)),
        (None, "wrong", None),
        (None, sessions.begin(Caller("gone", Scope.READ)), None),
        (None, sessions.begin(Caller("ann", Scope.ADMIN)), None),
    ]
    for token, cookie, caller in cases:
        assert caller_of(tokens, sessions, token, cookie) == caller
    nobodys = Tokens(CoordinatorSettings())
    assert not nobodys
    assert caller_of(nobodys, sessions, "any", None) == caller_of(nobodys, sessions, None, None) == LOCAL
    assert Caller("local", Scope.ADMIN) == LOCAL


def test_a_tokens_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    (ann, first), (bob, second) = entry("ann"), entry("bob")
    path = tmp_path / "tokens.json"
    write(path, first)
    tokens = Tokens(CoordinatorSettings(host="0.0.0.0", tokens_file=path))
    assert (tokens.caller(ann), tokens.caller(bob)) == (ANN, None)
    write(path, first, second)
    assert (tokens.caller(ann), tokens.caller(bob)) == (ANN, Caller("bob", Scope.READ))
    write(path, second)
    assert not tokens.includes(ANN)
    assert (tokens.caller(ann), tokens.caller(bob)) == (None, Caller("bob", Scope.READ))


def test_a_tokens_file_that_changes_in_place_within_its_length_is_read_again(tmp_path: Path) -> None:
    """The file's time of change tells that it is another."""
    (ann, first), (bob, second) = entry("ann"), entry("bob")
    path = tmp_path / "tokens.json"
    write(path, first)
    tokens = Tokens(CoordinatorSettings(host="0.0.0.0", tokens_file=path))
    assert tokens.caller(ann) == ANN
    path.write_text(json.dumps([json.loads(second.model_dump_json())]))
    os.utime(path, (1.0, 1.0))
    assert (tokens.caller(ann), tokens.caller(bob)) == (None, Caller("bob", Scope.READ))


def test_tokens_stay_as_they_were_while_their_file_cannot_be_used_and_each_change_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (ann, first), (_, second) = entry("ann"), entry("bob")
    path = tmp_path / "tokens.json"
    write(path, first)
    tokens = Tokens(CoordinatorSettings(host="0.0.0.0", tokens_file=path))
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            path.unlink()
            for _ in range(3):
                assert tokens.caller(ann) == ANN
            assert caplog.text.count("the tokens stay as they were") == 2 * number + 1
            path.write_text("[" + " " * number)
            path.chmod(0o600)
            for _ in range(3):
                assert tokens.includes(ANN)
            assert caplog.text.count("the tokens stay as they were") == 2 * number + 2
    write(path, second)
    assert tokens.caller(ann) is None
    assert caplog.text.count("the tokens stay as they were") == 4


def test_a_tokens_file_may_be_absent_beside_other_tokens_and_has_to_be_right_where_it_is(tmp_path: Path) -> None:
    (ann, first), (bob, second) = entry("ann"), entry("bob")
    path = tmp_path / "tokens.json"
    settings = CoordinatorSettings(tokens=(first,), tokens_file=path)
    assert settings.all_tokens() == (first,)
    tokens = Tokens(settings)
    write(path, second)
    assert (tokens.caller(ann), tokens.caller(bob)) == (ANN, Caller("bob", Scope.READ))
    assert settings.all_tokens() == (first, second)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        settings.all_tokens()


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601])
def test_a_tokens_file_that_anybody_else_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "tokens.json"
    write(path, entry("ann")[1])
    settings = CoordinatorSettings(host="0.0.0.0", tokens_file=path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=r"may be read by others; run: chmod 600"):
        settings.all_tokens()
    for own in (0o600, 0o400, 0o700):
        path.chmod(own)
        assert len(settings.all_tokens()) == 1


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"name": "a"}, 2]', '"a"', "null"])
def test_a_tokens_file_is_a_list_of_objects(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="must be a list"):
        CoordinatorSettings(host="0.0.0.0", tokens_file=path).all_tokens()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "send a token: Authorization: Bearer TOKEN"),
        ({"Authorization": "Basic YTpi"}, "send a token: Authorization: Bearer TOKEN"),
        ({"Authorization": "Bearer orl_wrong"}, "this coordinator does not know that token"),
        ({"Cookie": "omni_rl_session=wrong"}, "send a token: Authorization: Bearer TOKEN"),
    ],
)
async def test_a_refusal_says_what_is_missing(serve: Serve, headers: dict[str, str], says: str) -> None:
    async with serve(tokens=(entry("ann")[1],)) as served:
        answer = await served.http.get("/v1/state", headers=headers)
        assert (answer.status_code, answer.json()["detail"]) == (401, says)


@pytest.mark.anyio
async def test_a_scope_that_does_not_reach_that_far_is_named(serve: Serve) -> None:
    token, kept = entry("ann", Scope.SYNC)
    async with serve(tokens=(kept,)) as served:
        answer = await served.http.post("/v1/resume", headers=bearer(token))
        assert (answer.status_code, answer.json()["detail"]) == (403, "this takes scope admin; ann has sync")


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_body_that_is_large_is_read_for_whoever_is_known(serve: Serve, scheme: str) -> None:
    """A caller is known by a token whose scheme is written in any case, or by a session; what the route makes of
    the body is another matter."""
    token, kept = entry("ann", Scope.ADMIN)
    large = b" " * (65 << 10)
    async with serve(tokens=(kept,)) as served:

        async def put(headers: dict[str, str]) -> Any:
            return (await served.http.put(f"/v1/media/{'0' * 64}", content=large, headers=headers)).status_code

        assert await put({"Authorization": f"{scheme} {token}"}) == 415
        assert await put({"Authorization": f"Basic {token}"}) == 401
        assert await put({}) == 401
        await served.http.post("/v1/session", json={"token": token})
        assert await put({}) == 415
