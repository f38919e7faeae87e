"""The event stream: one reader reads events from the ledger in order, and hands them to everyone who listens."""

import asyncio
import bisect
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from omni_rl.api.events import EventAnswer
from omni_rl.errors import OmniRLError, TooManyError
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.telemetry import Telemetry

logger = logging.getLogger("omni_rl.coordinator")
KEPT = 1024
"""The number of events in memory, a kilobyte or two each; a client that was away for longer is served from the ledger
first."""
PAGE = 512
"""The number of events that are read at once."""
POLL_SECONDS = 1.0
"""Seconds between two looks for events of another process (the bridge writes syncs to the same ledger)."""
HEARTBEAT_SECONDS = 15.0
"""Seconds between two heartbeats: proxies close a stream that is silent for a minute."""


class Events:
    """The events. `publish` makes one durable; `stream` replays and follows."""

    def __init__(self, store: Store, telemetry: Telemetry, subscribers: int) -> None:
        self._store = store
        self._telemetry = telemetry
        self._max_subscribers = subscribers
        self._subscribers = 0
        self._recent: list[EventAnswer] = []
        self._last = 0
        self._poke = asyncio.Event()
        self._news = asyncio.Event()
        self._closed = False
        self._listeners: list[Callable[[EventAnswer], None]] = []

    @property
    def kept(self) -> range:
        """The numbers of the events in memory."""
        return range(self._recent[0].id, self._last + 1) if self._recent else range(0)

    @property
    def newest(self) -> int:
        """The number of the last event that listeners have heard; a stream after it has what comes from now on."""
        return self._last

    async def publish(self, kind: str, run: str | None = None, /, **data: Any) -> None:
        """Make an event durable before this returns; listeners have it a moment later."""
        await self._store.add_event(kind, run, data)
        self.poke()

    def poke(self) -> None:
        """Have the ledger looked at, since it has a new event."""
        self._poke.set()

    def hear(self, listener: Callable[[EventAnswer], None]) -> None:
        """Call `listener` with every event from now on, in order; it must not take long."""
        self._listeners.append(listener)

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        self._wake()

    async def begin(self) -> None:
        """Take what the ledger has for told: listeners hear what comes from now on."""
        self._last = await self._store.last_event()

    async def pump(self) -> None:
        """Read new events for all streams, until `close`. While the ledger cannot be read, streams stand still."""
        while not self._closed:
            try:
                self._poke.clear()
                while page := await self._store.events(after=self._last, limit=PAGE):
                    self._take(page)
            except OmniRLError as error:
                logger.warning("events were not read, again in %.0f s: %s", POLL_SECONDS, error)
                await asyncio.sleep(POLL_SECONDS)
                continue
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._poke.wait()
            except TimeoutError:
                continue

    async def stream(self, after: int, run: str | None = None) -> AsyncIterator[EventAnswer | None]:
        """Return events after number `after`, oldest first and for ever, with None where a heartbeat is due.

        Raises:
            TooManyError: as many streams are open as may be.
        """
        if self._subscribers >= self._max_subscribers:
            raise TooManyError(f"{self._max_subscribers} event streams are open; close one, or try again later")
        return self._follow(after, run)

    async def _follow(self, cursor: int, run: str | None) -> AsyncIterator[EventAnswer | None]:
        self._subscribers += 1
        self._telemetry.subscribers.set(self._subscribers)
        clock = asyncio.get_running_loop()
        due = clock.time() + HEARTBEAT_SECONDS
        try:
            while not self._closed:
                news = self._news
                page = await self._after(cursor)
                for event in page:
                    cursor = event.id
                    if run is None or event.run == run:
                        yield event
                        due = clock.time() + HEARTBEAT_SECONDS
                # News of other runs wakes this stream too, and its follower hears of none of them.
                if page and clock.time() < due:
                    continue
                try:
                    async with asyncio.timeout_at(due):
                        await news.wait()
                except TimeoutError:
                    yield None
                    due = clock.time() + HEARTBEAT_SECONDS
        finally:
            self._subscribers -= 1
            self._telemetry.subscribers.set(self._subscribers)

    async def _after(self, cursor: int) -> list[EventAnswer]:
        if cursor >= self._last:
            return []
        if self._recent and self._recent[0].id <= cursor + 1:
            start = bisect.bisect_right(self._recent, cursor, key=lambda event: event.id)
            return self._recent[start : start + PAGE]
        return await self._store.events(after=cursor, limit=PAGE)

    def _take(self, page: list[EventAnswer]) -> None:
        self._last = page[-1].id
        self._recent += page
        del self._recent[:-KEPT]
        for event in page:
            self._telemetry.events.labels(event.kind).inc()
            for listener in self._listeners:
                listener(event)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
