"""The connections of the server. The head of a request has a deadline and a limit, connections that send none cannot
use up all that there may be, and one that does not read its answer is closed. Uvicorn itself waits for ever, and
answers what is no HTTP in plain text."""

import asyncio
import resource
from collections import OrderedDict
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from omni_rl.errors import InvalidRequestError, OmniRLError, TooLargeError
from omni_rl_services.coordinator.guard import SECURITY_HEADERS
from omni_rl_services.coordinator.problems import respond

HEAD_SECONDS = 10.0
"""Seconds from a connection's begin, or from the first byte of a later head, to the head's end."""
UNREAD_SECONDS = 30.0
"""Seconds for which written bytes may stay unread. More is written when they have been read."""
WAITING = 256
"""The most connections without a whole head; with one more, the one that has waited longest is closed."""
UNFINISHED = 256 << 10
"""The most bytes of a head that has no end yet; `guard.HeadGuard` refuses a whole one that is longer than it takes."""
BESIDE = 256
"""Descriptors that are left for the ledger, media and logs."""
_Uvicorn: Any = AutoHTTPProtocol


def connection_class() -> type[asyncio.Protocol]:
    """Return the protocol class of one server's connections."""
    waiting: OrderedDict[Any, asyncio.TimerHandle] = OrderedDict()
    most = _descriptors() - BESIDE

    class Connection(_Uvicorn):  # type: ignore[misc]  # uvicorn chooses the class when it is imported
        _is_in_head = False
        _head = 0
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._wait()
            if len(waiting) > WAITING or len(self.connections) > most:
                oldest = next(iter(waiting))
                oldest.transport.abort()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._wait_no_more()
            elif before is None or before.response_complete:
                self._wait()
            if self._is_in_head and not self.transport.is_closing():
                self._head += len(data)
                if self._head > UNFINISHED:
                    self._refuse(TooLargeError, 431, f"the head of a request is longer than {UNFINISHED:,} bytes")

        def on_message_begin(self) -> None:
            # Called by httptools alone; h11 has a bound of its own.
            self._is_in_head, self._head = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            """Answer what uvicorn can make nothing of."""
            self._refuse(InvalidRequestError, 400, "this is no HTTP request that can be read")

        def _unsupported_upgrade_warning(self) -> None:
            """Say nothing: only HTTP is spoken here, and uvicorn would advise to install a library."""

        def _refuse(self, kind: type[OmniRLError], status: int, detail: str) -> None:
            cycle = self.cycle
            if cycle is not None and not cycle.response_complete:
                if not cycle.more_body:  # a request before this one, whole, is answered first and last
                    cycle.keep_alive = False
                    self.flow.pause_reading()
                    return
                if cycle.response_started:
                    self.transport.close()
                    return
            answer = respond(kind, status, detail, SECURITY_HEADERS | {"Connection": "close"})
            line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
            headers = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
            self.transport.write(line + headers + b"\r\n" + answer.body)
            self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            self._read_on()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._read_on()

        def _read_on(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _wait(self) -> None:
            if self not in waiting and not self.transport.is_closing():
                waiting[self] = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

        def _wait_no_more(self) -> None:
            if (timer := waiting.pop(self, None)) is not None:
                timer.cancel()

    return Connection


def _descriptors() -> int:
    """Raise the number of descriptors that this process may have open to what the system allows, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
