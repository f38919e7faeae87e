"""What every request passes before a route sees it: whose page sent it, how long it is, and what goes back with it."""

import logging
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_rl.errors import ForbiddenError, InvalidRequestError, OmniRLError, TooLargeError
from omni_rl_services.coordinator.problems import respond
from omni_rl_services.coordinator.settings import Bounds

logger = logging.getLogger("omni_rl.coordinator")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_PART = re.compile(r"^/v1/runs/[^/]+/attempts/[^/]+/steps/[^/]+/parts/[^/]+$")
_NUL = re.compile(rb"\x00|%00")
_MEDIA = re.compile(r"^/v1/media/[^/]+$")
_UPDATE = re.compile(r"^/v1/runs/[^/]+/(engines/[^/]+/)?updates/[^/]+$")


class SecurityHeaders:
    """Strict headers on every answer; nothing of the API is cached."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, sending)


class Unexpected:
    """The process boundary: a fault of ours is logged, and the client is told nothing of our insides."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            if scope["type"] != "http" or started:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await respond(OmniRLError, 500, "a fault of the coordinator's own; its log has it")(scope, receive, send)


class SameOrigin:
    """Refuses what another site's page sends through the reader's browser.

    A page may send requests to any address, and by rebinding its own name it may even read answers. Browsers name the
    page in `Origin` and `Sec-Fetch-Site`; other programs send neither. `hosts`: where there are no tokens, the only
    names under which we answer.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else LOOPBACK_NAMES | set(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (reason := self._refusal(scope["method"], Headers(scope=scope))):
            await respond(ForbiddenError, 403, reason)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self._hosts is not None and _parsed(f"//{host}").hostname not in self._hosts:
            return f"host {host!r} is not one of this coordinator; add it to allowed_hosts, or use tokens"
        if method in SAFE_METHODS:
            return None
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "a page of another site sent this"
        origin = headers.get("origin")
        if origin is not None and _parsed(origin).netloc != host:
            return f"a page of {origin} sent this"
        return None


class NoNul:
    """Refuses a NUL in a path or a query: no name has one, and PostgreSQL takes no text with one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and ("\0" in scope["path"] or _NUL.search(scope["query_string"])):
            await respond(InvalidRequestError, 422, "a NUL in the path or the query")(scope, receive, send)
            return
        await self._app(scope, receive, send)


class BodyLimit:
    """Stops reading a body that is longer than its route takes, whether it says its length or not."""

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self._limit(scope["path"], headers.get("content-type", ""))
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            await respond(TooLargeError, 413, _too_large(limit))(scope, receive, send)
            return
        seen = 0

        async def receiving() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > limit:
                    # FastAPI turns any other exception inside the reading of a body into a 400.
                    raise HTTPException(413, _too_large(limit))
            return message

        await self._app(scope, receiving, send)

    def _limit(self, path: str, content_type: str) -> int:
        if _PART.match(path):
            return self._bounds.json_part if content_type.startswith("application/json") else self._bounds.part
        if _UPDATE.match(path):
            return self._bounds.update
        return self._bounds.media if _MEDIA.match(path) else self._bounds.body


def _too_large(limit: int) -> str:
    return f"the body is longer than {limit:,} bytes; records may be sent as an Arrow stream, or in more parts"


def _parsed(url: str) -> SplitResult:
    """The parts of what a header calls a URL; of what is none (`http://[`), the parts of the empty one."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
