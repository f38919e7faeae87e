"""What either client sends again after a proxy's answer, and what not."""

import asyncio
from collections.abc import Callable, Sequence

import httpx
import pytest

from omni_rl.api.events import EventAnswer
from omni_rl.client import AsyncClient, Client
from omni_rl.client.retries import Retries
from omni_rl.errors import ApiError

Ask = Callable[[httpx.MockTransport], object]
ADDRESS = "http://coordinator"
QUICK = Retries(attempts=3, first=0.01, longest=0.02)
EVENT = EventAnswer(id=7, at=1.0, kind="sync_ended", data={})
STREAM = f"id: 7\nevent: sync_ended\ndata: {EVENT.model_dump_json()}\n\n"


def note(transport: httpx.MockTransport) -> object:
    return Client(ADDRESS, transport=transport, retries=QUICK).note(1, "mine")


def note_async(transport: httpx.MockTransport) -> object:
    return asyncio.run(AsyncClient(ADDRESS, transport=transport, retries=QUICK).note(1, "mine"))


def event(transport: httpx.MockTransport) -> object:
    return next(Client(ADDRESS, transport=transport, retries=QUICK).events())


def event_async(transport: httpx.MockTransport) -> object:
    async def first() -> object:
        return await anext(AsyncClient(ADDRESS, transport=transport, retries=QUICK).events())

    return asyncio.run(first())


def proxy(statuses: Sequence[int]) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A proxy that answers with these statuses, in order, and the requests that it has had. A 200 is the coordinator's
    event stream."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        status = statuses[len(seen) - 1]
        return httpx.Response(status, text=STREAM if status == 200 else "<html>proxy</html>")

    return httpx.MockTransport(answer), seen


@pytest.mark.parametrize("ask", [note, note_async])
@pytest.mark.parametrize("statuses", [[502], [504], [429, 504]])
def test_what_must_not_be_done_twice_is_sent_again_only_where_it_was_not_done(ask: Ask, statuses: list[int]) -> None:
    transport, seen = proxy(statuses)
    with pytest.raises(ApiError, match=f"status {statuses[-1]}"):
        ask(transport)
    assert len(seen) == len(statuses)


@pytest.mark.parametrize("ask", [event, event_async])
def test_a_stream_outlives_a_coordinator_that_restarts_behind_a_proxy(ask: Ask) -> None:
    transport, seen = proxy([502, 504, 200])
    assert ask(transport) == EVENT
    assert len(seen) == 3


@pytest.mark.parametrize("ask", [event, event_async])
def test_a_stream_ends_where_a_proxy_goes_on_saying_that_nobody_is_there(ask: Ask) -> None:
    transport, seen = proxy([502] * 3)
    with pytest.raises(ApiError, match="status 502"):
        ask(transport)
    assert len(seen) == 3
