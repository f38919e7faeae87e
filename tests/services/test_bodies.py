"""Which bodies are read, for how long they may take, and how many bytes of them there may be at once."""

import asyncio
import json
import types
from typing import Any

import pytest
from omni_rl_services.coordinator import bodies, memory
from omni_rl_services.coordinator.bodies import Bodies
from omni_rl_services.coordinator.settings import MIB, Bounds
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from tests.services.asgi import body, call, echo, scope
from tests.services.posted import ARROW

pytestmark = pytest.mark.anyio
KIB = 1024
PART = "/v1/runs/math/attempts/1/steps/2/parts/0"
BOUNDS = Bounds(body=100, part=500, json_part=400, update=300, media=200, memory=64 * MIB)
LARGE = Bounds(body=10 * MIB, memory=64 * MIB)


def admitting(bounds: Bounds = BOUNDS, known: bool = True) -> Bodies:
    return Bodies(echo, bounds, lambda request: known)


def put(path: str, size: int | None, kind: str = "", **headers: str) -> dict[str, Any]:
    told = {"content-length": str(size)} if size is not None else {}
    return scope("PUT", path, list({**told, "content-type": kind, **headers}.items()))


@pytest.mark.parametrize(
    ("path", "kind", "limit"),
    [
        ("/v1/runs", "", 100),
        ("/", "", 100),
        (PART, ARROW, 500),
        (PART, "Application/JSON; charset=utf-8", 400),
        (PART, "", 500),
        (PART, "application/json", 400),
        (PART, "application/json; charset=utf-8", 400),
        (f"{PART}/more", ARROW, 100),
        (f"/else{PART}", ARROW, 100),
        ("/v1/runs/math/attempts/1/steps/2/seal", "application/json", 100),
        ("/v1/runs/math/engines/e0/updates/3", "application/json", 300),
        ("/v1/runs/math/updates/3", "application/json", 300),
        ("/v1/runs/math/updates/3/more", "", 100),
        (f"/v1/media/{'0' * 64}", "image/png", 200),
        ("/v1/media/", "image/png", 100),
    ],
)
async def test_each_kind_of_body_has_its_own_most_bytes(path: str, kind: str, limit: int) -> None:
    for size, status in ((limit, 200), (limit + 1, 413)):
        sent = await call(admitting(), put(path, size, kind), body(bytes(size)))
        assert sent[0]["status"] == status
    refusal = json.loads(sent[1]["body"])
    assert refusal["code"] == "too_large"
    assert f"longer than {limit:,} bytes" in refusal["detail"]
    assert (b"connection", b"close") in sent[0]["headers"]


@pytest.mark.parametrize("pieces", [(50, 51), (0, 101), (101, 0), (40, 40, 40)])
async def test_a_body_that_is_longer_than_it_said_is_read_no_further(pieces: tuple[int, ...]) -> None:
    for headers in ({"transfer-encoding": "chunked"}, {}):
        with pytest.raises(HTTPException) as refused:
            await call(admitting(), put("/v1/runs", None, **headers), body(*map(bytes, pieces)))
        assert (refused.value.status_code, refused.value.headers) == (413, {"Connection": "close"})
        assert "longer than 100 bytes" in refused.value.detail


async def test_a_body_of_as_many_bytes_as_there_may_be_is_read_whole() -> None:
    sent = await call(
        admitting(), put("/v1/runs", None, **{"transfer-encoding": "chunked"}), body(bytes(60), bytes(40))
    )
    assert [len(one["body"]) for one in sent[1:]] == [60, 40]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": str(64 * KIB)}, 200),
        ({"content-length": str(64 * KIB + 1)}, 401),
        ({"transfer-encoding": "chunked"}, 401),
        ({}, 200),
        ({"content-length": "much"}, 200),
        ({"content-length": "-5", "transfer-encoding": "chunked"}, 401),
    ],
)
async def test_who_is_not_known_may_send_64_kib(headers: dict[str, str], status: int) -> None:
    of = scope("PUT", "/v1/runs", list(headers.items()))
    assert (await call(admitting(LARGE, known=False), of, body(b"")))[0]["status"] == status
    sent = await call(admitting(LARGE), of, body(b""))
    assert sent[0]["status"] == 200


class Held:
    """An app that holds its request until it is let go."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, of: Scope, receive: Receive, send: Send) -> None:
        self.entered.append(of["path"])
        await self.go.wait()
        await echo(of, receive, send)


async def test_large_bodies_share_an_eighth_of_the_memory_and_small_ones_take_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "WAIT_SECONDS", 0.01)
    held = Held()
    admitted = Bodies(held, LARGE, lambda request: True)
    first = asyncio.create_task(call(admitted, put("/first", 8 * MIB - 64 * KIB - 1), body(b"")))
    second = asyncio.create_task(call(admitted, put("/second", 64 * KIB + 1), body(b"")))
    small = asyncio.create_task(call(admitted, put("/small", 64 * KIB), body(b"")))
    await asyncio.sleep(0)
    sent = await call(admitted, put("/third", 64 * KIB + 1), body(b""))
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (429, "too_many")
    assert {(b"connection", b"close"), (b"retry-after", b"1")} <= set(sent[0]["headers"])
    assert sorted(held.entered) == ["/first", "/second", "/small"]
    held.go.set()
    assert [one[0]["status"] for one in await asyncio.gather(first, second, small)] == [200] * 3
    assert (await call(admitted, put("/third", 64 * KIB + 1), body(b"")))[0]["status"] == 200


async def test_nothing_that_is_no_request_is_looked_at() -> None:
    async def app(of: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})

    lifespan = {"type": "lifespan", "headers": [(b"content-length", b"99999")], "path": "/"}
    assert await call(Bodies(app, BOUNDS, lambda request: False), lifespan) == [{"type": "lifespan.startup.complete"}]


async def test_a_body_of_which_nothing_comes_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SILENT_SECONDS", 0.01)

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    async def send(message: Message) -> None:
        pass

    with pytest.raises(HTTPException, match=r"nothing came of the body for 0\.01 s") as refused:
        await admitting()(put("/v1/runs", 10), receive, send)
    assert (refused.value.status_code, refused.value.headers) == (408, {"Connection": "close"})


async def test_a_sender_may_leave_at_any_time_after_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event stream waits for hours for its reader to leave."""
    monkeypatch.setattr(bodies, "SILENT_SECONDS", 0.01)
    received: list[Message] = [{"type": "http.request", "body": b"whole"}]

    async def receive() -> Message:
        if received:
            return received.pop()
        await asyncio.sleep(0.03)
        return {"type": "http.disconnect"}

    heard: list[str] = []

    async def app(of: Scope, receive: Receive, send: Send) -> None:
        heard.extend([(await receive())["type"] for _ in range(2)])

    async def send(message: Message) -> None:
        pass

    await Bodies(app, BOUNDS, lambda request: True)(put("/v1/runs", 5), receive, send)
    assert heard == ["http.request", "http.disconnect"]


async def test_a_sender_who_leaves_within_the_body_is_told_of() -> None:
    received: list[Message] = [{"type": "http.request", "body": b"ha", "more_body": True}, {"type": "http.disconnect"}]
    heard: list[Message] = []

    async def app(of: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])

    await call(Bodies(app, BOUNDS, lambda request: True), put("/v1/runs", 5), received)
    assert [one["type"] for one in heard] == ["http.request", "http.disconnect"]


async def pace(
    monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, int]], size: int, waited_for: bool = False
) -> int:
    """The status of a body whose pieces come so many seconds after its begin, while others wait or not."""
    now = [100.0]
    monkeypatch.setattr(bodies, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    received = [(at, {"type": "http.request", "body": bytes(length), "more_body": True}) for at, length in pieces]
    received.append((received[-1][0], {"type": "http.request", "body": b"", "more_body": False}))
    admitted = Bodies(echo, LARGE, lambda request: True)

    async def receive() -> Message:
        at, message = received.pop(0)
        now[0] = 100.0 + at
        return message

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    beside = asyncio.create_task(wait_for_room(admitted)) if waited_for else None
    refused: HTTPException | None = None
    try:
        await call_beside(admitted, put("/v1/runs", size), receive, send)
    except HTTPException as error:
        refused = error
    if beside is not None:
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)
    if refused is not None:
        slow = (
            "others wait, and the body comes at less than 1 MiB" if waited_for else "the body comes at less than 16 KiB"
        )
        assert refused.detail == f"{slow} a second"
        assert refused.headers == {"Connection": "close"}
        return refused.status_code
    status: int = sent[0]["status"]
    return status


async def call_beside(admitted: Bodies, of: dict[str, Any], receive: Receive, send: Send) -> None:
    """Let the body have its memory before another asks for it."""

    async def slowly() -> Message:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await receive()

    await admitted(of, slowly, send)


async def wait_for_room(admitted: Bodies) -> None:
    """Ask for all the memory that there is for bodies, once another has some."""
    await asyncio.sleep(0)
    await call(admitted, put("/other", 8 * MIB), body(b""))


@pytest.mark.parametrize(
    ("pieces", "waited_for", "status"),
    [
        # In its first five seconds nobody looks at its speed.
        ([(4.99, 1)], False, 200),
        ([(5.0, 5 * 16 * KIB)], False, 200),
        ([(5.0, 5 * 16 * KIB - 1)], False, 408),
        ([(1.0, 10), (10.0, 10 * 16 * KIB - 10)], False, 200),
        ([(1.0, 10), (10.0, 10 * 16 * KIB - 11)], False, 408),
        ([(5.0, 5 * MIB)], True, 200),
        ([(5.0, 5 * MIB - 1)], True, 408),
        ([(4.99, 1)], True, 200),
    ],
)
async def test_a_body_has_to_come_fast_enough_and_faster_where_others_wait(
    monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, int]], waited_for: bool, status: int
) -> None:
    assert await pace(monkeypatch, pieces, 6 * MIB, waited_for) == status


async def test_the_last_piece_may_be_as_late_as_it_is() -> None:
    """What is whole is not refused for how long it took."""
    with pytest.MonkeyPatch.context() as patched:
        now = [0.0]
        patched.setattr(bodies, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

        async def receive() -> Message:
            now[0] = 500.0
            return {"type": "http.request", "body": b"x", "more_body": False}

        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await admitting()(put("/v1/runs", 1), receive, send)
        assert sent[0]["status"] == 200
