"""Connections: each has so long to send the head of a request, and those that send none cannot use up all there may
be. Uvicorn itself waits for ever."""

import asyncio
import resource
from collections import OrderedDict
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 10.0
"""From a connection's begin, or from the first byte of a later head, to its end."""
WAITING = 256
"""Connections without a whole head yet; with one more, the one that waited longest is closed."""
BESIDE = 256
"""Descriptors that are left for the ledger, media and logs."""
_Uvicorn: Any = AutoHTTPProtocol


def connection_class() -> type[asyncio.Protocol]:
    """The protocol of one server's connections."""
    waiting: OrderedDict[Any, asyncio.TimerHandle] = OrderedDict()
    most = _descriptors() - BESIDE

    class Connection(_Uvicorn):  # type: ignore[misc]  # uvicorn chooses the class when it is imported
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

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self not in waiting and not self.transport.is_closing():
                waiting[self] = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

        def _wait_no_more(self) -> None:
            if (timer := waiting.pop(self, None)) is not None:
                timer.cancel()

    return Connection


def _descriptors() -> int:
    """How many this process may have open: as many as the system lets it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
