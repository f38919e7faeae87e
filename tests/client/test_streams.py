"""Events over connections that are lost at any place."""

from collections.abc import Callable

import httpx
import pytest

from omni_rl.client import Client
from omni_rl.client.aio import AsyncClient
from omni_rl.client.retries import Retries

EVENT = 'id: {0}\ndata: {{"id": {0}, "kind": "gate", "at": 1.0,\ndata: "run": null, "data": {{}}}}\n\n'
WHOLE = EVENT.format(2)
CUTS = [0, 9, 20, len(WHOLE) - 20, len(WHOLE) - 1]
AT_ONCE = Retries(attempts=3, first=0.001, longest=0.001)


def connections(cut: int) -> Callable[[httpx.Request], httpx.Response]:
    """Two connections: the first ends after so many bytes of its second event."""
    bodies = [EVENT.format(1) + WHOLE[:cut], WHOLE + EVENT.format(3)]
    return lambda request: httpx.Response(200, text=bodies.pop(0), headers={"content-type": "text/event-stream"})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_rl.client.calls.STREAM_PAUSE", 0.0)


@pytest.mark.parametrize("cut", CUTS)
def test_an_event_that_was_cut_off_comes_whole_by_the_next_connection(cut: int) -> None:
    client = Client("http://coordinator.invalid", transport=httpx.MockTransport(connections(cut)), retries=AT_ONCE)
    found = client.events(0)
    assert [next(found).id for _ in range(3)] == [1, 2, 3]


@pytest.mark.anyio
@pytest.mark.parametrize("cut", CUTS)
async def test_it_does_so_where_events_are_awaited(cut: int) -> None:
    transport = httpx.MockTransport(connections(cut))
    client = AsyncClient("http://coordinator.invalid", transport=transport, retries=AT_ONCE)
    found = client.events(0)
    assert [(await anext(found)).id for _ in range(3)] == [1, 2, 3]


BEGINNINGS = ["retry: 2000\nid: 7\n\n", "id: 7\n\nid: 8\n"]


def lost_before_its_first_event(beginning: str, asked: list[str | None]) -> Callable[[httpx.Request], httpx.Response]:
    """Two connections: the first says where it begins, and ends. `asked` becomes the numbers that each is asked to go
    on after."""
    bodies = [beginning, EVENT.format(8)]

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params.get("after"))
        return httpx.Response(200, text=bodies.pop(0), headers={"content-type": "text/event-stream"})

    return answer


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_a_connection_that_is_lost_before_its_first_event_is_taken_up_where_it_began(beginning: str) -> None:
    asked: list[str | None] = []
    transport = httpx.MockTransport(lost_before_its_first_event(beginning, asked))
    client = Client("http://coordinator.invalid", transport=transport, retries=AT_ONCE)
    assert next(client.events()).id == 8
    assert asked == [None, "7"]


@pytest.mark.anyio
@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_it_is_where_events_are_awaited(beginning: str) -> None:
    asked: list[str | None] = []
    transport = httpx.MockTransport(lost_before_its_first_event(beginning, asked))
    client = AsyncClient("http://coordinator.invalid", transport=transport, retries=AT_ONCE)
    assert (await anext(client.events())).id == 8
    assert asked == [None, "7"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
