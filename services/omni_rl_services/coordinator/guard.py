"""What every request passes before a route sees it: whose page sent it, how large its head is, and which headers go
back with the answer."""

import logging
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_rl.errors import ForbiddenError, InvalidRequestError, OmniRLError, TooLargeError
from omni_rl_services.coordinator.problems import respond

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
TARGET_BYTES = 16 << 10
"""The most bytes of a path and its query."""
HEADERS, HEADER_BYTES = 128, 64 << 10
"""The most headers, and the most bytes of all their names and values. Each header that is wanted is looked for among
all."""
_NUL = re.compile(rb"\x00|%00")


class SecurityHeaders:
    """Middleware that puts strict headers on every answer; no answer of the API is cached."""

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
    """Middleware at the process boundary: a fault of ours is logged, and the client is told no detail of it."""

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
        except ClientDisconnect:
            logger.info("%s %s: its sender left before its end", scope["method"], scope["path"])
        except Exception:
            if scope["type"] != "http" or started:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await respond(OmniRLError, 500, "a fault of the coordinator's own; its log has it")(scope, receive, send)


class HeadGuard:
    """Middleware that refuses requests by their heads, before anything else looks through them: one that is larger than
    any client's, one with a NUL, and what another site's page sends through the reader's browser.

    A page may send requests to any address, and by rebinding its own name it may even read answers. Browsers name the
    page in `Origin` and `Sec-Fetch-Site`; other programs send neither. `hosts` are, where there are no tokens, the only
    names under which the coordinator answers.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else LOOPBACK_NAMES | set(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        answer: ASGIApp = self._app if refusal is None else refusal
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        if (large := _too_large(scope)) is not None:
            # The body may be as large as it is said to be: nobody reads it.
            return respond(TooLargeError, *large, {"Connection": "close"})
        # No name has a NUL, and PostgreSQL takes no text with one.
        if "\0" in scope["path"] or _NUL.search(scope["query_string"]):
            return respond(InvalidRequestError, 422, "a NUL in the path or the query")
        foreign = self._foreign(scope["method"], Headers(scope=scope))
        return None if foreign is None else respond(ForbiddenError, 403, foreign)

    def _foreign(self, method: str, headers: Headers) -> str | None:
        """Return why a request counts as another site's, or None."""
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


def _too_large(scope: Scope) -> tuple[int, str] | None:
    """Return the status and the reason of the refusal of a head that is too large, or None."""
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > TARGET_BYTES:
        return 414, f"the path and its query are longer than {TARGET_BYTES:,} bytes"
    headers = scope["headers"]
    if len(headers) > HEADERS:
        return 431, f"{len(headers):,} headers; at most {HEADERS} are read"
    if sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES:
        return 431, f"the headers are longer than {HEADER_BYTES:,} bytes"
    return None


def _parsed(url: str) -> SplitResult:
    """Return the parts of what a header calls a URL; where it is none (`http://[`), the parts of the empty URL."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
