"""The event stream by itself: what is in memory, what is read from the ledger, heartbeats, and its end."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from omni_rl_services.coordinator import events
from omni_rl_services.coordinator.events import Events
from omni_rl_services.coordinator.routes.events import _messages
from omni_rl_services.coordinator.telemetry import Telemetry

from omni_rl.api.events import EventAnswer
from omni_rl.errors import LedgerError, TooManyError
from tests.services.conftest import Served
from tests.services.test_telemetry import samples

pytestmark = pytest.mark.anyio


class Pages:
    """A ledger of events, with a record of what was read of it."""

    def __init__(self, count: int = 0) -> None:
        self.kept = [event(number) for number in range(1, count + 1)]
        self.asked: list[tuple[int, int]] = []
        self.failures: list[Exception] = []

    async def last_event(self) -> int:
        return len(self.kept)

    async def events(self, *, after: int, limit: int) -> list[EventAnswer]:
        if self.failures:
            raise self.failures.pop()
        self.asked.append((after, limit))
        return self.kept[after : after + limit]

    async def add_event(self, kind: str, run: str | None, data: dict[str, object]) -> None:
        self.kept.append(event(len(self.kept) + 1, kind, run))


def event(number: int, kind: str = "step", run: str | None = "a") -> EventAnswer:
    return EventAnswer(id=number, at=0.0, kind=kind, run=run, data={})


def made(pages: Pages, subscribers: int = 2) -> tuple[Events, Telemetry]:
    telemetry, store = Telemetry(1), pages
    found: Any = Events(store, telemetry, subscribers)  # type: ignore[arg-type]
    return found, telemetry


async def read(stream: Events) -> None:
    """Take all that the ledger has by now."""
    pumping = asyncio.create_task(stream.pump())
    for _ in range(20):
        await asyncio.sleep(0)
    pumping.cancel()
    await asyncio.gather(pumping, return_exceptions=True)


async def first(stream: AsyncIterator[EventAnswer | None], count: int) -> list[int | None]:
    found: list[int | None] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            one = await anext(stream)
            found.append(None if one is None else one.id)
    return found


async def test_what_was_there_before_the_start_is_heard_by_nobody() -> None:
    pages = Pages(5)
    stream, _ = made(pages)
    heard: list[int] = []
    stream.hear(lambda event: heard.append(event.id))
    assert stream.kept == range(0)
    await stream.begin()
    await read(stream)
    assert heard == []
    await stream.publish("run", "b")
    await read(stream)
    assert heard == [6]
    assert stream.kept == range(6, 7)


async def test_listeners_hear_every_event_once_and_in_order_and_each_kind_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "PAGE", 3)
    monkeypatch.setattr(events, "KEPT", 4)
    pages = Pages()
    stream, telemetry = made(pages)
    heard: dict[str, list[int]] = {"a": [], "b": []}
    stream.hear(lambda event: heard["a"].append(event.id))
    stream.hear(lambda event: heard["b"].append(event.id))
    for number in range(7):
        await stream.publish("step" if number % 2 else "run")
    await read(stream)
    assert heard == {"a": list(range(1, 8)), "b": list(range(1, 8))}
    assert stream.kept == range(4, 8)
    assert pages.asked == [(0, 3), (3, 3), (6, 3), (7, 3)]
    found = samples(telemetry.expose().decode())
    assert [found["omni_rl_events_total", (("event", kind),)] for kind in ("run", "step")] == [4, 3]


@pytest.mark.parametrize(
    ("after", "from_ledger"), [(6, False), (4, False), (3, False), (2, True), (0, True), (5, False)]
)
async def test_only_what_is_no_longer_in_memory_is_read_from_the_ledger(
    monkeypatch: pytest.MonkeyPatch, after: int, from_ledger: bool
) -> None:
    """Events 4 to 7 are in memory."""
    monkeypatch.setattr(events, "KEPT", 4)
    pages = Pages(7)
    stream, _ = made(pages)
    await read(stream)
    pages.asked.clear()
    found = await stream.stream(after)
    assert await first(found, 7 - after) == list(range(after + 1, 8))
    assert bool(pages.asked) is from_ledger


@pytest.mark.parametrize("kept", [100, 2])
async def test_events_come_page_by_page_from_memory_and_from_the_ledger(
    monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(events, "PAGE", 3)
    monkeypatch.setattr(events, "KEPT", kept)
    pages = Pages(10)
    stream, _ = made(pages)
    await read(stream)
    pages.asked.clear()
    assert await first(await stream.stream(0), 10) == list(range(1, 11))
    assert [after for after, _ in pages.asked] == ([] if kept == 100 else [0, 3, 6])
    assert {limit for _, limit in pages.asked} <= {3}


async def test_after_the_newest_a_stream_begins_now_and_of_one_run_it_has_the_runs_alone() -> None:
    pages = Pages(2)
    stream, _ = made(pages, 3)
    await read(stream)
    now = stream.newest
    every, of_b, after = await stream.stream(now), await stream.stream(now, "b"), await stream.stream(1, "b")
    for run in ("a", "b", None, "b"):
        await stream.publish("step", run)
    await read(stream)
    assert await first(every, 4) == [3, 4, 5, 6]
    assert await first(of_b, 2) == await first(after, 2) == [4, 6]


async def test_as_many_streams_are_open_as_may_be_and_one_that_ends_makes_room() -> None:
    stream, telemetry = made(Pages(3))
    await read(stream)

    def shown() -> float:
        return samples(telemetry.expose().decode())["omni_rl_event_subscribers", ()]

    opened: list[Any] = []
    for number in (1, 2):
        opened.append(await stream.stream(0))
        await anext(opened[-1])
        assert shown() == number
    with pytest.raises(TooManyError, match="2 event streams are open; close one, or try again later"):
        await stream.stream(0)
    await opened.pop().aclose()
    assert shown() == 1
    await anext(await stream.stream(0))
    assert shown() == 2


async def test_a_stream_in_which_nothing_happens_has_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.01)
    stream, _ = made(Pages(1))
    await read(stream)
    found = await stream.stream(0)
    assert await first(found, 3) == [1, None, None]
    await stream.publish("step")
    await read(stream)
    assert await first(found, 2) == [2, None]


async def test_closing_ends_streams_and_the_pump() -> None:
    stream, _ = made(Pages(1))
    pumping = asyncio.create_task(stream.pump())
    follower = await stream.stream(0)
    assert await first(follower, 1) == [1]
    waiting = asyncio.ensure_future(anext(follower, "over"))
    await asyncio.sleep(0)
    stream.close()
    async with asyncio.timeout(10):
        assert await waiting == "over"
        stream.poke()
        await pumping
    assert [one async for one in await stream.stream(0)] == []


@pytest.mark.parametrize("poked", [False, True])
async def test_events_of_another_process_are_found_and_our_own_at_once(
    monkeypatch: pytest.MonkeyPatch, poked: bool
) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 60.0 if poked else 0.01)
    pages = Pages(1)
    stream, _ = made(pages)
    pumping = asyncio.create_task(stream.pump())
    follower = await stream.stream(1)
    for number in (2, 3):
        waiting = asyncio.ensure_future(anext(follower))
        await asyncio.sleep(0.03)
        pages.kept.append(event(number))
        if poked:
            stream.poke()
        async with asyncio.timeout(10):
            assert (await waiting or event(0)).id == number
    pumping.cancel()


async def test_while_the_ledger_cannot_be_read_streams_stand_still(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.01)
    pages = Pages(1)
    pages.failures = [LedgerError("disk I/O error")] * 2
    stream, _ = made(pages)
    pumping = asyncio.create_task(stream.pump())
    assert await first(await stream.stream(0), 1) == [1]
    assert caplog.text.count("events were not read, again in 0 s: disk I/O error") == 2
    pumping.cancel()


async def test_a_message_has_the_number_the_kind_and_the_event_and_a_heartbeat_is_a_comment() -> None:
    async def found() -> AsyncIterator[EventAnswer | None]:
        yield event(7, "run", "b")
        yield None

    sent = [one async for one in _messages(6, found())]
    assert sent == [
        "retry: 2000\nid: 6\n\n",
        'id: 7\nevent: run\ndata: {"id":7,"at":0.0,"kind":"run","run":"b","data":{}}\n\n',
        ": still here\n\n",
    ]


async def test_a_page_is_the_last_events_or_those_after_a_number(served: Served) -> None:
    for number in range(5):
        await served.coordinator.events.publish("step", "digits", step=number)
    newest = await served.coordinator.store.last_event()

    async def page(query: str) -> list[int]:
        return [one["id"] for one in (await served.http.get(f"/v1/events/page{query}")).json()]

    assert await page("?limit=2") == [newest - 1, newest]
    assert await page("?after=0&limit=2") == [1, 2]
    assert await page(f"?after={newest}") == []
    assert await page(f"?after={newest - 1}") == [newest]
    assert await page("") == list(itertools.islice(itertools.count(1), newest))
