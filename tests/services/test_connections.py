"""A server's connections without sockets: deadlines of heads and of answers, and which connection is closed."""

import asyncio
import json
import resource
from typing import Any

import pytest
import uvicorn
from omni_rl_services.coordinator import connections
from omni_rl_services.coordinator.connections import connection_class
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

pytestmark = pytest.mark.anyio
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
PART = b"PUT /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nab"


class Timer:
    """A call that is due after so many seconds."""

    def __init__(self, seconds: float, call: Any) -> None:
        self.seconds, self.call, self.cancelled = seconds, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Wire:
    """A transport that keeps what is written, and says what became of it."""

    def __init__(self) -> None:
        self.written, self.end, self.reads = b"", "", True

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.end = self.end or "closed"

    def abort(self) -> None:
        self.end = "aborted"

    def is_closing(self) -> bool:
        return bool(self.end)

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Host:
    """The connections of one server, whose app answers once it is let go."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []
        self.go = asyncio.Event()
        self.begin = asyncio.Event()
        config = uvicorn.Config(
            self._app, http=connection_class(), ws="none", interface="asgi3", lifespan="off", log_config=None
        )
        config.load()
        self._config, self._state, self._loop = config, ServerState(), asyncio.get_running_loop()
        self._class: Any = config.http_protocol_class

    def call_later(self, seconds: float, call: Any) -> Timer:
        self.timers.append(Timer(seconds, call))
        return self.timers[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    @property
    def due(self) -> list[float]:
        return [timer.seconds for timer in self.timers if not timer.cancelled]

    def connect(self) -> tuple[Any, Wire]:
        connection, wire = self._class(self._config, self._state, {}, _loop=self), Wire()
        connection.connection_made(wire)
        return connection, wire

    async def _app(self, of: Scope, receive: Receive, send: Send) -> None:
        await self.begin.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await self.go.wait()
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def host() -> Host:
    found = Host()
    found.go.set()
    found.begin.set()
    return found


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def refusal(wire: Wire) -> tuple[int, str]:
    head, _, body = wire.written.rpartition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head[head.rindex(b"HTTP/1.1 ") :].split()[1]), json.loads(body)["code"]


async def test_a_head_has_ten_seconds_from_the_connections_begin(host: Host) -> None:
    connection, wire = host.connect()
    assert host.due == [10.0]
    connection.data_received(WHOLE[:10])
    assert host.due == [10.0], "the same ten"
    host.timers[0].call()
    assert wire.end == "aborted"


async def test_a_head_that_is_whole_is_waited_for_no_more_and_the_next_from_its_first_byte_on(host: Host) -> None:
    connection, wire = host.connect()
    connection.data_received(WHOLE)
    assert host.timers[0].cancelled
    await settled()
    assert wire.written.endswith(b"ok")
    before = len(host.timers)
    connection.data_received(WHOLE[:10])
    assert [timer.seconds for timer in host.timers[before:]] == [10.0]
    connection.data_received(WHOLE[10:])
    assert host.timers[-1].cancelled or host.timers[before].cancelled
    await settled()
    assert wire.written.count(b"HTTP/1.1 200 OK") == 2


async def test_a_body_that_follows_its_head_has_no_deadline_of_a_head(host: Host) -> None:
    host.begin.clear()
    connection, _ = host.connect()
    connection.data_received(PART)
    await settled()
    connection.data_received(b"cd")
    assert 10.0 not in host.due


async def test_the_end_of_a_connection_ends_its_deadlines(host: Host) -> None:
    connection, _ = host.connect()
    connection.connection_lost(None)
    assert host.due == []


async def test_bytes_may_stay_unread_for_thirty_seconds(host: Host) -> None:
    connection, wire = host.connect()
    connection.data_received(WHOLE)
    connection.pause_writing()
    (timer,) = [timer for timer in host.timers if timer.seconds == 30.0]
    connection.resume_writing()
    assert timer.cancelled
    connection.resume_writing()
    connection.pause_writing()
    connection.connection_lost(ConnectionResetError())
    assert all(timer.cancelled for timer in host.timers if timer.seconds == 30.0)
    host.timers[-1].call()
    assert wire.end == "aborted"


async def test_of_257_connections_without_a_head_the_first_is_closed(host: Host) -> None:
    opened = [host.connect() for _ in range(256)]
    assert not any(wire.end for _, wire in opened)
    opened[0][0].data_received(WHOLE)
    opened.append(host.connect())
    assert not any(wire.end for _, wire in opened), "one has its head"
    host.connect()
    assert [wire.end for _, wire in opened[:3]] == ["", "aborted", ""]


@pytest.mark.parametrize("most", [3, 4])
async def test_the_oldest_of_more_connections_than_there_are_descriptors_is_closed(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """256 descriptors are for the ledger, media and logs."""
    monkeypatch.setattr(connections, "_descriptors", lambda: 256 + most)
    host = Host()
    opened = [host.connect() for _ in range(most)]
    assert not any(wire.end for _, wire in opened)
    host.connect()
    assert [wire.end for _, wire in opened] == ["aborted"] + [""] * (most - 1)


def test_as_many_descriptors_may_be_open_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, soft), hard))
        assert connections._descriptors() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize(("over", "refused"), [(0, False), (1, True)])
async def test_a_head_without_an_end_may_have_256_kib(host: Host, pieces: int, over: int, refused: bool) -> None:
    connection, wire = host.connect()
    begin = b"GET /healthz HTTP/1.1\r\nX: "
    head = begin + b"y" * (256 * 1024 + over - len(begin))
    step = len(head) // pieces + 1
    for at in range(0, len(head), step):
        connection.data_received(head[at : at + step])
    assert wire.end == ("closed" if refused else "")
    if refused:
        assert refusal(wire) == (431, "too_large")


async def test_each_head_is_counted_from_its_own_begin_and_a_body_is_none(host: Host) -> None:
    connection, wire = host.connect()
    for _ in range(3):
        begin = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "
        connection.data_received(begin + b"y" * 100_000)
        connection.data_received(b"\r\n\r\n")
        await settled()
    assert (wire.end, wire.written.count(b"200 OK")) == ("", 3)
    connection.data_received(b"PUT /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n")
    for _ in range(3):
        connection.data_received(b"y" * 300_000)
    assert b" 431 " not in wire.written


async def test_what_is_no_http_is_refused_at_once_where_nothing_is_under_way(host: Host) -> None:
    connection, wire = host.connect()
    connection.data_received(b"SSH-2.0-OpenSSH_9.7\r\n\r\n")
    assert refusal(wire) == (400, "invalid_request")
    assert (wire.end, wire.written.split(b"\r\n")[0]) == ("closed", b"HTTP/1.1 400 Bad Request")
    assert b"x-content-type-options: nosniff" in wire.written.lower()


async def test_what_is_no_http_behind_a_whole_request_lets_that_one_be_answered_and_no_other(host: Host) -> None:
    host.begin.clear()
    connection, wire = host.connect()
    connection.data_received(WHOLE)
    connection.data_received(b"\0\0\r\n\r\n")
    assert (wire.written, wire.end, wire.reads) == (b"", "", False)
    host.begin.set()
    await settled()
    assert wire.written.endswith(b"ok")
    assert wire.end == "closed"


async def test_what_is_no_http_behind_an_answer_is_refused(host: Host) -> None:
    connection, wire = host.connect()
    connection.data_received(WHOLE)
    await settled()
    connection.data_received(b"\0\0\r\n\r\n")
    assert refusal(wire) == (400, "invalid_request")


BROKEN = b"PUT /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("begun", [False, True])
async def test_a_body_that_is_broken_is_refused_unless_its_answer_has_begun(host: Host, begun: bool) -> None:
    host.go.clear()
    if not begun:
        host.begin.clear()
    connection, wire = host.connect()
    connection.data_received(BROKEN)
    await settled()
    before = wire.written
    assert before.startswith(b"HTTP/1.1 200") is begun
    connection.data_received(b"zz\r\n")
    assert wire.end == "closed"
    if begun:
        assert wire.written == before, "no second answer within the first"
    else:
        assert refusal(wire) == (400, "invalid_request")


async def test_no_advice_is_logged_about_protocols_that_are_not_spoken(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    connection, wire = host.connect()
    connection.data_received(WHOLE[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    await settled()
    assert wire.written.endswith(b"ok")
    assert "upgrade" not in caplog.text.lower()
