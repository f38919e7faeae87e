"""What comes before a route sees it: bytes that are no HTTP, heads that are too large, other protocols."""

import contextlib
import importlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from omni_rl_services.coordinator import connections
from omni_rl_services.coordinator.guard import HEADERS, TARGET_BYTES
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol

from tests.services.live import live

WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(params=[AutoHTTPProtocol, H11Protocol], ids=["installed", "h11"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Uvicorn has h11 alone where nothing else is installed."""
    monkeypatch.setattr(connections, "_Uvicorn", request.param)
    with live(tmp_path) as address:
        yield address


def said(url: str, sent: bytes) -> bytes:
    """All that comes back before the connection is closed."""
    at = httpx.URL(url)
    with socket.create_connection((at.host, at.port), timeout=10) as connection:
        connection.sendall(sent)
        received = b""
        with contextlib.suppress(ConnectionResetError):  # what was not read of the request was there when it closed
            while chunk := connection.recv(65536):
                received += chunk
    return received


def problem(answer: bytes) -> tuple[int, Any]:
    """Status and code of the last answer."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    first, _, headers = head[head.rindex(b"HTTP/1.1 ") :].partition(b"\r\n")
    assert b"content-type: application/problem+json" in headers
    assert b"x-content-type-options: nosniff" in headers.lower()
    found = json.loads(body)
    assert found["status"] == int(first.split()[1])
    return found["status"], found["code"]


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.7\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA b\r\n\r\n",
        b"PUT /v1/media/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_answered_with_a_problem_and_ended(url: str, sent: bytes) -> None:
    assert problem(said(url, sent)) == (400, "invalid_request")


def test_a_whole_request_is_answered_before_what_is_wrong_behind_it(url: str) -> None:
    answer = said(url, WHOLE + b"\0\0\0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'{"status":"ok"}' in answer


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_other_protocols_are_not_spoken(url: str, protocol: bytes) -> None:
    asked = b"Connection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n"
    key = b"dGhlIHNhbXBsZSBub25jZQ=="
    for path, status in ((b"/healthz", b"200"), (b"/v1/runs/none", b"404")):
        at = httpx.URL(url)
        with socket.create_connection((at.host, at.port), timeout=10) as connection:
            connection.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n" % path + asked % (protocol, key) + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    ("lines", "target", "status"),
    [
        (HEADERS + 1, 1, 431),
        (3_000, 1, 431),
        (1, TARGET_BYTES + 1, 414),
        (4, 1, 200),
    ],
)
def test_a_large_head_is_refused_before_anything_looks_through_it(
    url: str, lines: int, target: int, status: int
) -> None:
    answer = httpx.get(f"{url}/healthz?{'a' * target}", headers=[(f"X-{n}", "y") for n in range(lines)])
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["code"] == "too_large"


def test_headers_that_are_long_are_refused(url: str) -> None:
    answer = httpx.get(f"{url}/healthz", headers={f"X-{n}": "y" * 1000 for n in range(100)})
    assert (answer.status_code, answer.json()["code"]) in ((431, "too_large"), (400, "invalid_request"))


def test_a_head_without_an_end_takes_no_more_than_its_room(tmp_path: Path) -> None:
    with live(tmp_path) as address:
        at = httpx.URL(address)
        with socket.create_connection((at.host, at.port), timeout=10) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
            with contextlib.suppress(OSError):
                for _ in range(64):
                    connection.sendall(bytes([121]) * connections.UNFINISHED)
                pytest.fail("all of it was taken")
        # Behind a head that is whole, a long body is a body.
        assert httpx.get(f"{address}/healthz").status_code == 200
        late = httpx.put(f"{address}/v1/runs/none/updates/1", content=bytes(4 * connections.UNFINISHED))
        assert late.json()["code"] == "not_found"


def test_the_document_is_made_while_others_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makers, served = [], []
    applications: Any = importlib.import_module("fastapi.applications")
    generate = applications.get_openapi

    def making(**named: Any) -> dict[str, Any]:
        makers.append(threading.get_ident())
        served.append(httpx.get(f"{address}/healthz", timeout=10).status_code)
        made: dict[str, Any] = generate(**named)
        return made

    monkeypatch.setattr(applications, "get_openapi", making)
    with live(tmp_path) as address:
        first, second = (httpx.get(f"{address}/openapi.json", timeout=30) for _ in range(2))
        assert first.json()["components"]["schemas"]["Records"]
        assert first.content == second.content
    assert (len(makers), served) == (1, [200])
