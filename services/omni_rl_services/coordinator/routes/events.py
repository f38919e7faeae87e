"""Routes for events, as they happen and page by page."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from omni_rl.api.base import NAME
from omni_rl.api.events import EventAnswer
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader
from omni_rl_services.coordinator.params import MAX_ID, LimitQuery
from omni_rl_services.coordinator.problems import documented

router = APIRouter(prefix="/v1/events", tags=["events"])
RETRY_MS = 2000
"""Milliseconds that a browser waits before it comes back."""
After = Annotated[int | None, Query(ge=0, le=MAX_ID, description="Only events after this number.")]
LastEventId = Annotated[
    int | None, Header(alias="Last-Event-ID", ge=0, le=MAX_ID, description="What a browser sends when it comes back.")
]
OfRun = Annotated[str | None, Query(pattern=NAME, description="Only events of this run.")]


@router.get(
    "",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "One message an event; `data` is an event as JSON."},
        **documented(401, 403, 422, 429, 503),
    },
)
async def follow(
    coordinator: CoordinatorDep, caller: Reader, after: After = None, run: OfRun = None, last: LastEventId = None
) -> StreamingResponse:
    """Follow events as server-sent events, from `Last-Event-ID` (or `after`) on; without either, from now on."""
    begin = next((number for number in (last, after) if number is not None), coordinator.events.newest)
    stream = await coordinator.events.stream(begin, run)
    return StreamingResponse(
        _messages(begin, stream), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


@router.get("/page", responses=documented(401, 403, 422, 503))
async def page(
    coordinator: CoordinatorDep, caller: Reader, after: After = None, limit: LimitQuery = 512
) -> list[EventAnswer]:
    """Return one page of events, after number `after`; without it, the last ones."""
    if after is None:
        after = max(0, await coordinator.store.last_event() - limit)
    return await coordinator.store.events(after=after, limit=limit)


async def _messages(begin: int, stream: AsyncIterator[EventAnswer | None]) -> AsyncIterator[str]:
    # A client whose connection is lost before its first event comes back with this number, and misses none.
    yield f"retry: {RETRY_MS}\nid: {begin}\n\n"
    async for event in stream:
        if event is None:
            yield ": still here\n\n"
        else:
            yield f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
