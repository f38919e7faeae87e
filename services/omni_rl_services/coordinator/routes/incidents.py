"""Incidents: what a person has to look at, and what persons say of it."""

from typing import Annotated

from fastapi import APIRouter, Query

from omni_rl.api.base import NAME
from omni_rl.api.incidents import IncidentAnswer, NoteBody
from omni_rl.consistency.incidents import IncidentKind
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader, Syncer
from omni_rl_services.coordinator.params import MAX_ID, IncidentPath, LimitQuery
from omni_rl_services.coordinator.problems import documented

router = APIRouter(prefix="/v1/incidents", tags=["incidents"])
Open = Annotated[bool | None, Query(description="true: those that are not over; false: those that are; else both.")]
OfRun = Annotated[str | None, Query(pattern=NAME, description="Of this run alone.")]
OfKind = Annotated[IncidentKind | None, Query(description="Of this kind alone.")]
Before = Annotated[int | None, Query(ge=1, le=MAX_ID, description="With numbers below this one: the next page.")]


@router.get("", responses=documented(401, 403, 422))
async def newest(
    coordinator: CoordinatorDep,
    caller: Reader,
    open: Open = None,  # noqa: A002 - the parameter's name
    run: OfRun = None,
    kind: OfKind = None,
    before: Before = None,
    limit: LimitQuery = 100,
) -> list[IncidentAnswer]:
    """Incidents, the newest first, those that are over among them."""
    found = await coordinator.store.incidents(still_open=open, run=run, kind=kind, before=before, limit=limit)
    return [coordinator.incident_answer(one) for one in found]


@router.get("/{incident}", responses=documented(401, 403, 404, 422))
async def one(incident: IncidentPath, coordinator: CoordinatorDep, caller: Reader) -> IncidentAnswer:
    """One incident."""
    return coordinator.incident_answer(await coordinator.store.incident(incident))


@router.post("/{incident}/acknowledge", responses=documented(401, 403, 404, 409, 422))
async def acknowledge(incident: IncidentPath, coordinator: CoordinatorDep, caller: Syncer) -> IncidentAnswer:
    """Say that one has it in hand. Again is fine; one that somebody else has is a conflict."""
    found = await coordinator.store.acknowledge(incident, caller.name)
    coordinator.events.poke()
    return coordinator.incident_answer(found)


@router.post("/{incident}/notes", responses=documented(401, 403, 404, 409, 413, 422))
async def add_note(
    incident: IncidentPath, body: NoteBody, coordinator: CoordinatorDep, caller: Syncer
) -> IncidentAnswer:
    """Write to it, whether it is over or not."""
    found = await coordinator.store.add_note(incident, caller.name, body.text)
    coordinator.events.poke()
    return coordinator.incident_answer(found)


@router.post("/{incident}/end", responses=documented(401, 403, 404, 409, 422))
async def end(incident: IncidentPath, coordinator: CoordinatorDep, caller: Syncer) -> IncidentAnswer:
    """Say that it is over: its run is judged afresh, and what is still wrong opens another. One whose run's gate is
    shut ends as the run is resumed (`POST /v1/resume`)."""
    return coordinator.incident_answer(await coordinator.end_incident(incident, caller.name))
