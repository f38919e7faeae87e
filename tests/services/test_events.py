"""The event stream over a real socket: in order, nothing missed, nothing twice."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from omni_rl_services.coordinator import events
from omni_rl_services.coordinator.repeating import repeat
from omni_rl_services.coordinator.settings import Bounds

from omni_rl.api.events import EventAnswer
from omni_rl.api.runs import RunBody
from omni_rl.client import Client
from omni_rl.errors import LedgerError, TooManyError
from tests.services.conftest import Served
from tests.services.live import live


def body(name: str) -> RunBody:
    return RunBody(run=name, model="small", dtype="float32")


def test_events_are_replayed_from_the_last_one_seen_and_then_followed(tmp_path: Path) -> None:
    with live(tmp_path) as url, Client(url) as client:
        for number in range(5):
            client.create_run(body(f"r{number}"))
        page = client.event_page(after=0)
        assert [event.run for event in page if event.kind == "run"] == ["r0", "r1", "r2", "r3", "r4"]
        seen = []
        follower = client.events(after=page[2].id)
        for event in follower:
            seen.append(event)
            if event.run == "r4":
                break
        client.create_run(body("r5"))
        seen.append(next(follower))
        assert [event.id for event in seen] == [event.id for event in page[3:]] + [seen[-1].id]
        assert seen[-1].run == "r5"


def test_what_a_browser_sends_when_it_comes_back(tmp_path: Path) -> None:
    with live(tmp_path) as url, Client(url) as client, httpx.Client(base_url=url) as browser:
        for name in ("a", "b"):
            client.create_run(body(name))
        first = client.event_page(after=0)[-2]
        with browser.stream("GET", "/v1/events", headers={"Last-Event-ID": str(first.id)}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.iter_lines()
            assert next(lines) == "retry: 2000"
            assert next(lines) == f"id: {first.id}"
            assert next(lines) == ""
            assert next(lines) == f"id: {first.id + 1}"
            assert next(lines) == "event: run"
            assert '"run":"b"' in next(lines)


class Cut(httpx.BaseTransport):
    """A connection to a coordinator whose first stream is lost after its first message. `away` is called before the
    client comes back."""

    def __init__(self, away: Callable[[], object]) -> None:
        self._inner = httpx.HTTPTransport()
        self._away = away
        self._cut = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        if self._cut:
            return response
        self._cut = True
        message, lines = "", response.iter_lines()
        while not message.endswith("\n\n"):
            message += f"{next(lines)}\n"
        response.close()
        self._away()
        return httpx.Response(200, text=message)


@pytest.mark.parametrize("run", [None, "b"])
def test_what_happens_while_a_client_that_saw_nothing_yet_is_away_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str | None
) -> None:
    monkeypatch.setattr("omni_rl.client.calls.STREAM_PAUSE", 0.0)
    with live(tmp_path) as url, Client(url) as client:
        client.create_run(body("a"))
        follower = Client(url, transport=Cut(lambda: client.create_run(body("b"))))
        assert "b" in (event.run for event in follower.events(run=run))
        follower.close()


def test_a_client_that_was_away_for_long_is_served_from_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEPT", 2)
    monkeypatch.setattr(events, "PAGE", 3)
    with live(tmp_path) as url, Client(url) as client:
        for number in range(20):
            client.create_run(body(f"r{number}"))
        follower = client.events(after=0)
        names = [event.run for event in (next(follower) for _ in range(21)) if event.kind == "run"]
        assert names == [f"r{number}" for number in range(20)]


def test_a_stream_survives_the_coordinators_restart(tmp_path: Path) -> None:
    """The client takes it up again where it was; the port is the same."""
    seen: list[str | None] = []
    ended = threading.Event()
    with live(tmp_path) as url, Client(url) as client:
        client.create_run(body("before"))
        port = int(url.rsplit(":", 1)[1])
        follower = Client(url)

        def follow() -> None:
            for event in follower.events(after=0):
                if event.kind == "run":
                    seen.append(event.run)
                if event.run == "after":
                    ended.set()
                    return

        thread = threading.Thread(target=follow)
        thread.start()
    with live(tmp_path, port=port) as url, Client(url) as client:
        client.create_run(body("after"))
        assert ended.wait(30)
        thread.join()
    follower.close()
    assert seen == ["before", "after"]


def test_of_one_run_alone(tmp_path: Path) -> None:
    with live(tmp_path) as url, Client(url) as client:
        for name in ("a", "b", "a2"):
            client.create_run(body(name))
        follower = client.events(after=0, run="b")
        assert next(follower).run == "b"


def test_streams_are_bounded(tmp_path: Path) -> None:
    with live(tmp_path, bounds=Bounds(subscribers=1)) as url, Client(url) as client:
        client.create_run(body("a"))
        follower = client.events(after=0)
        next(follower)
        with httpx.Client(base_url=url) as other:
            refused = other.get("/v1/events")
            assert (refused.status_code, refused.json()["code"]) == (429, TooManyError.code)


@pytest.mark.anyio
async def test_events_in_memory_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 5)
    stream = served.coordinator.events
    for number in range(40):
        await stream.publish("step", "digits", step=number)
    newest = (await served.coordinator.store.events(after=0, limit=100))[-1].id
    async with asyncio.timeout(10):
        while stream.kept.stop <= newest:
            await asyncio.sleep(0.01)
    assert stream.kept == range(newest - 4, newest + 1)


@pytest.mark.anyio
async def test_events_are_heard_after_the_ledger_could_not_be_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, store = served.coordinator.events, served.coordinator.store
    heard: list[EventAnswer] = []
    stream.hear(heard.append)
    read, failures = store.events, [LedgerError("disk I/O error")]

    async def failing(*, after: int, limit: int) -> list[EventAnswer]:
        if failures:
            raise failures.pop()
        return await read(after=after, limit=limit)

    monkeypatch.setattr(events, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(store, "events", failing)
    await stream.publish("step", "digits", step=1)
    async with asyncio.timeout(10):
        while not any(event.kind == "step" for event in heard):
            await asyncio.sleep(0.01)
    assert not failures


@pytest.mark.anyio
@pytest.mark.parametrize("error", [LedgerError("the disk is full"), KeyError("rollout-0")])
async def test_work_that_is_repeated_goes_on_after_a_failure(error: Exception) -> None:
    failures, again = [error], asyncio.Event()

    async def work() -> None:
        if failures:
            raise failures.pop()
        again.set()

    task = asyncio.create_task(repeat(work, 0.0, "the work"))
    async with asyncio.timeout(10):
        await again.wait()
    task.cancel()
