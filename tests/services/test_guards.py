"""What a request passes before a route sees it, each guard by itself and at its limits."""

import json
import logging
from typing import Any

import pytest
from omni_rl_services.coordinator import answers
from omni_rl_services.coordinator.answers import ChunkedAnswers
from omni_rl_services.coordinator.app import METHODS, RequestCounter
from omni_rl_services.coordinator.guard import (
    HeadGuard,
    SecurityHeaders,
    Unexpected,
)
from omni_rl_services.coordinator.telemetry import Telemetry
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from tests.services.asgi import body, call, echo, passed_on, scope
from tests.services.test_telemetry import samples

pytestmark = pytest.mark.anyio
KIB = 1024
LIFESPAN = {"type": "lifespan", "method": "POST", "path": "\0", "query_string": b"\0", "headers": []}


async def untouched(of: Scope, receive: Receive, send: Send) -> None:
    """An app that sends a message that no middleware knows."""
    await send({"type": "lifespan.startup.complete"})


@pytest.mark.parametrize(
    "guard",
    [
        SecurityHeaders(untouched),
        Unexpected(untouched),
        HeadGuard(untouched, ()),
        ChunkedAnswers(untouched),
        RequestCounter(untouched, Telemetry(1)),
    ],
    ids=lambda guard: type(guard).__name__,
)
async def test_what_is_no_http_passes_every_guard(guard: Any) -> None:
    assert await call(guard, dict(LIFESPAN)) == [{"type": "lifespan.startup.complete"}]


def problem(sent: list[Message]) -> tuple[int, str]:
    """Status and code of a refusal."""
    return sent[0]["status"], json.loads(sent[1]["body"])["code"]


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/" + "a" * (16 * KIB - 1), b"", 200),
        ("/" + "a" * (16 * KIB), b"", 414),
        ("/", b"a" * (16 * KIB - 1), 200),
        ("/", b"a" * (16 * KIB), 414),
        ("/" + "a" * (8 * KIB - 1), b"a" * (8 * KIB), 200),
        ("/" + "a" * (8 * KIB), b"a" * (8 * KIB), 414),
    ],
)
async def test_a_path_and_its_query_have_their_most_bytes_together(path: str, query: bytes, status: int) -> None:
    sent = await call(HeadGuard(echo, None), scope(path=path, query=query), body(b""))
    assert sent[0]["status"] == status
    if status != 200:
        assert problem(sent) == (414, "too_large")
        assert (b"connection", b"close") in sent[0]["headers"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("a", "b")] * 128, 200),
        ([("a", "b")] * 129, 431),
        ([("name", "x" * (64 * KIB - 4))], 200),
        ([("name", "x" * (64 * KIB - 3))], 431),
        ([("n" * 1000, "x" * 1000)] * (32), 200),
        ([("n" * 1000, "x" * 1000)] * (32 + 1), 431),
    ],
)
async def test_headers_have_their_most_number_and_bytes(headers: list[tuple[str, str]], status: int) -> None:
    sent = await call(HeadGuard(echo, None), scope(headers=headers), body(b""))
    assert sent[0]["status"] == status
    if status != 200:
        assert problem(sent) == (431, "too_large")


async def test_a_path_of_which_the_server_has_no_bytes_has_no_length() -> None:
    assert await passed_on(HeadGuard(echo, None), {**scope(), "raw_path": None}, body(b""))


@pytest.mark.parametrize(
    ("path", "query", "passes"),
    [
        ("/a", b"b=1", True),
        ("/a\0", b"", False),
        ("/a", b"b=\0", False),
        ("/a", b"b=%00c", False),
        ("/a", b"b=%01", True),
        ("/a%00", b"", True),  # a server hands on the path as it reads it: this one has a per cent sign
    ],
)
async def test_a_nul_is_no_part_of_a_path_or_a_query(path: str, query: bytes, passes: bool) -> None:
    sent = await call(HeadGuard(echo, None), scope(path=path, query=query), body(b""))
    assert (sent[0]["status"] == 200) is passes
    if not passes:
        assert problem(sent) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("hosts", "method", "headers", "says"),
    [
        ((), "GET", {"host": "localhost"}, None),
        ((), "GET", {"host": "127.0.0.1:8400"}, None),
        ((), "GET", {"host": "LOCALHOST:1"}, None),
        ((), "GET", {}, "host '' is not one"),
        ((), "GET", {"host": "rl.example"}, "add it to allowed_hosts"),
        (("rl.example",), "GET", {"host": "rl.example:80"}, None),
        (("rl.example",), "POST", {"host": "rl.example", "origin": "http://rl.example"}, None),
        (("rl.example",), "POST", {"host": "rl.example", "origin": "http://other"}, "a page of http://other"),
        (None, "GET", {"host": "anything"}, None),
        (None, "GET", {"host": "a", "origin": "http://b", "sec-fetch-site": "cross-site"}, None),
        (None, "HEAD", {"host": "a", "origin": "http://b"}, None),
        (None, "OPTIONS", {"host": "a", "sec-fetch-site": "cross-site"}, None),
        (None, "POST", {"host": "a", "origin": "http://b"}, "a page of http://b"),
        (None, "PUT", {"host": "a", "origin": "http://a:81"}, "a page of http://a:81"),
        (None, "DELETE", {"host": "a", "sec-fetch-site": "cross-site"}, "a page of another site"),
        (None, "POST", {"host": "a", "origin": "http://a", "sec-fetch-site": "same-site"}, "another site"),
        (None, "POST", {"host": "a", "origin": "http://a", "sec-fetch-site": "same-origin"}, None),
        (None, "POST", {"host": "a", "sec-fetch-site": "none"}, None),
        (None, "POST", {"host": "a"}, None),
        (None, "POST", {"host": "a", "origin": ""}, "a page of"),
    ],
)
async def test_who_may_send_what_through_a_browser(
    hosts: tuple[str, ...] | None, method: str, headers: dict[str, str], says: str | None
) -> None:
    sent = await call(HeadGuard(echo, hosts), scope(method, headers=list(headers.items())), body(b""))
    if says is None:
        assert sent[0]["status"] == 200
    else:
        assert problem(sent) == (403, "forbidden")
        assert says in json.loads(sent[1]["body"])["detail"]


async def test_security_headers_are_added_and_replace_none_that_an_answer_has() -> None:
    async def app(of: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"cache-control", b"no-cache"), (b"x-frame-options", b"SAMEORIGIN")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    sent = await call(SecurityHeaders(app), scope())
    found = dict(sent[0]["headers"])
    assert (found[b"cache-control"], found[b"x-frame-options"]) == (b"no-cache", b"SAMEORIGIN")
    assert found[b"content-security-policy"].startswith(b"default-src 'none'; script-src 'self'; ")
    assert found[b"cross-origin-resource-policy"] == b"same-origin"
    assert sent[1] == {"type": "http.response.body", "body": b""}


async def test_a_fault_before_an_answer_is_a_problem_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def app(of: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("hunter2")

    sent = await call(Unexpected(app), scope("PUT", "/v1/runs"))
    assert problem(sent) == (500, "omni_rl_error")
    assert b"hunter2" not in sent[1]["body"]
    assert "PUT /v1/runs failed" in caplog.text
    assert "hunter2" in caplog.text


async def test_a_fault_within_an_answer_ends_the_connection() -> None:
    async def app(of: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("hunter2")

    with pytest.raises(KeyError):
        await call(Unexpected(app), scope())
    with pytest.raises(KeyError):
        await call(Unexpected(raising), {**LIFESPAN})


async def raising(of: Scope, receive: Receive, send: Send) -> None:
    raise KeyError("hunter2")


async def test_a_sender_who_leaves_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def app(of: Scope, receive: Receive, send: Send) -> None:
        raise ClientDisconnect

    with caplog.at_level(logging.INFO):
        assert await call(Unexpected(app), scope("PUT", "/v1/media/a")) == []
    assert "PUT /v1/media/a: its sender left before its end" in caplog.text
    assert not [one for one in caplog.records if one.levelno > logging.INFO]


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize(
    ("size", "pieces"), [(0, [0]), (1, [1]), (10, [10]), (11, [10, 1]), (20, [10, 10]), (25, [10, 10, 5])]
)
async def test_an_answer_is_handed_on_in_pieces(
    monkeypatch: pytest.MonkeyPatch, size: int, pieces: list[int], more: bool
) -> None:
    monkeypatch.setattr(answers, "PIECE", 10)
    content = bytes(range(size))

    async def app(of: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": content, "more_body": more})

    first, *rest = await call(ChunkedAnswers(app), scope())
    assert first["type"] == "http.response.start"
    assert [len(one["body"]) for one in rest] == pieces
    assert b"".join(one["body"] for one in rest) == content
    assert [one["more_body"] for one in rest] == [True] * (len(pieces) - 1) + [more]


async def test_only_bodies_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PIECE", 10)

    async def app(of: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.debug", "body": bytes(30)})
        await send({"type": "http.response.body"})

    assert await call(ChunkedAnswers(app), scope()) == [
        {"type": "http.response.debug", "body": bytes(30)},
        {"type": "http.response.body"},
    ]


@pytest.mark.parametrize(
    ("method", "status", "route", "counted"),
    [
        *((method, 200, "/v1/runs", (method, "/v1/runs", "200")) for method in sorted(METHODS)),
        ("BREW", 200, "/v1/runs", ("other", "/v1/runs", "200")),
        ("GET", 405, "/v1/runs", ("other", "/v1/runs", "405")),
        ("GET", 404, None, ("GET", "none", "404")),
        ("PUT", 404, "/v1/runs", ("PUT", "/v1/runs", "404")),
        ("GET", None, "/v1/runs", ("GET", "/v1/runs", "500")),
    ],
)
async def test_a_request_is_counted_by_its_method_its_route_and_its_status(
    method: str, status: int | None, route: str | None, counted: tuple[str, str, str]
) -> None:
    """Without an answer, for what the app raises, it counts as 500."""

    class Route:
        path = route

    async def app(of: Scope, receive: Receive, send: Send) -> None:
        if route is not None:
            of["route"] = Route
        if status is None:
            raise KeyError("no answer")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"", "status": 999})

    telemetry = Telemetry(1)
    try:
        await call(RequestCounter(app, telemetry), scope(method))
    except KeyError:
        assert status is None
    found = samples(telemetry.expose().decode())
    requests = [(labels, value) for (name, labels), value in found.items() if name == "omni_rl_http_requests_total"]
    expected = tuple(zip(("method", "route", "status"), counted, strict=True))
    assert requests == [(expected, 1.0)]
    seconds = {labels: value for (name, labels), value in found.items() if name == "omni_rl_http_request_seconds_sum"}
    assert list(seconds) == [expected[:2]]
    assert 0 <= seconds[expected[:2]] < 5
