"""Calls a piece of middleware with nothing around it."""

from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def scope(
    method: str = "GET", path: str = "/", headers: Sequence[tuple[str, str]] = (), *, query: bytes = b""
) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
    }


def body(*pieces: bytes) -> list[Message]:
    """A request's body in these pieces."""
    last = len(pieces) - 1
    return [{"type": "http.request", "body": one, "more_body": at < last} for at, one in enumerate(pieces)]


async def call(app: ASGIApp, of: dict[str, Any], received: Sequence[Message] = ()) -> list[Message]:
    """What the middleware sends for a request whose messages are `received`."""
    sent: list[Message] = []
    waiting = list(received)

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(of, receive, send)
    return sent


async def echo(of: Scope, receive: Receive, send: Send) -> None:
    """Answer with what came, piece by piece."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})


async def passed_on(app: Any, of: dict[str, Any], received: Sequence[Message] = ()) -> bool:
    """Whether the middleware lets a request through to the app behind it."""
    status: int = (await call(app, of, received))[0]["status"]
    return status == 200
