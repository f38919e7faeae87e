"""Admits or refuses request bodies: by who sends them, how long they are, how fast they come, and how many bytes of
them are in memory."""

import asyncio
import re
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_rl.errors import TooLargeError, TooManyError, UnauthenticatedError
from omni_rl_services.coordinator.auth import ASK_FOR_ONE
from omni_rl_services.coordinator.content_types import JSON, media_type
from omni_rl_services.coordinator.memory import Room, budget
from omni_rl_services.coordinator.problems import respond
from omni_rl_services.coordinator.settings import Bounds

SILENT_SECONDS = 10.0
"""Seconds that the next bytes of a body may take."""
GRACE_SECONDS = 5.0
"""Seconds of a body's begin in which its speed is not looked at."""
SLOWEST = 16 << 10
"""The fewest bytes a second with which a body must come, on average."""
SLOWEST_WHILE_WAITED_FOR = 1 << 20
"""The fewest bytes a second with which a body must come while others wait for the memory that it holds."""
SMALL = 64 << 10
"""The most bytes of a body that no memory is set aside for, and of one whose sender is not known."""
CLOSE = {"Connection": "close"}
"""The headers of an answer after which the rest of the body is not read."""
_PART = re.compile(r"^/v1/runs/[^/]+/attempts/[^/]+/steps/[^/]+/parts/[^/]+$")
_MEDIA = re.compile(r"^/v1/media/[^/]+$")
_UPDATE = re.compile(r"^/v1/runs/[^/]+/(engines/[^/]+/)?updates/[^/]+$")


class Bodies:
    """Middleware that admits a body if its sender is known, it is no longer than its route takes, it comes fast enough,
    and there is memory for it until it is answered. Others are refused before they are read, or as soon as it shows.

    `knows` says whether a request's sender is known, or need not be.
    """

    def __init__(self, app: ASGIApp, bounds: Bounds, knows: Callable[[HTTPConnection], bool]) -> None:
        self._app = app
        self._bounds = bounds
        self._knows = knows
        self._room = Room(budget(bounds.memory).bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        limit = self._limit(scope["path"], request.headers.get("content-type", ""))
        size = _announced(request, limit)
        if size > limit:
            await respond(TooLargeError, 413, _too_large(limit), CLOSE)(scope, receive, send)
            return
        if size > SMALL and not self._knows(request):
            refusal = respond(UnauthenticatedError, 401, ASK_FOR_ONE, CLOSE)
            await refusal(scope, receive, send)
            return
        if size <= SMALL:
            await self._app(scope, _Body(receive, limit, lambda: False).receive, send)
            return
        try:
            async with self._room.taken(size):
                await self._app(scope, _Body(receive, limit, lambda: self._room.is_waited_for).receive, send)
        except TooManyError as error:
            await respond(TooManyError, 429, str(error), CLOSE | {"Retry-After": "1"})(scope, receive, send)

    def _limit(self, path: str, content_type: str) -> int:
        if _PART.match(path):
            return self._bounds.json_part if media_type(content_type) == JSON else self._bounds.part
        if _UPDATE.match(path):
            return self._bounds.update
        return self._bounds.media if _MEDIA.match(path) else self._bounds.body


class _Body:
    """One body as the app reads it."""

    def __init__(self, receive: Receive, limit: int, is_waited_for: Callable[[], bool]) -> None:
        self._receive = receive
        self._limit = limit
        self._is_waited_for = is_waited_for
        self._seen = 0
        self._more = True
        self._began = time.monotonic()

    async def receive(self) -> Message:
        """Return the next message. FastAPI turns any exception but an HTTPException inside the reading of a body into
        400."""
        if not self._more:  # what follows a body is that its sender left, whenever that is
            return await self._receive()
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"nothing came of the body for {SILENT_SECONDS:g} s", CLOSE) from None
        if message["type"] != "http.request":
            return message
        self._seen += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        if self._seen > self._limit:
            raise HTTPException(413, _too_large(self._limit), CLOSE)
        if self._more:
            self._must_be_fast_enough()
        return message

    def _must_be_fast_enough(self) -> None:
        seconds = time.monotonic() - self._began
        if seconds < GRACE_SECONDS:
            return
        if self._seen < SLOWEST * seconds:
            raise HTTPException(408, f"the body comes at less than {SLOWEST >> 10} KiB a second", CLOSE)
        if self._is_waited_for() and self._seen < SLOWEST_WHILE_WAITED_FOR * seconds:
            raise HTTPException(
                408,
                f"others wait, and the body comes at less than {SLOWEST_WHILE_WAITED_FOR >> 20} MiB a second",
                CLOSE,
            )


def _announced(request: HTTPConnection, limit: int) -> int:
    """Return the bytes of a request's body, by its head: `limit` if the head does not say, 0 without a body."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        return int(announced)
    return limit if "transfer-encoding" in request.headers else 0


def _too_large(limit: int) -> str:
    return f"the body is longer than {limit:,} bytes; records may be sent as an Arrow stream, or in more parts"
