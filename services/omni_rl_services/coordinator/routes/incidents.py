"""Routes for incidents: what a person has to look at, and what persons say of it."""

from typing import Annotated

from fastapi import APIRouter, Query

from omni_rl.api.base import NAME
from omni_rl.api.incidents import IncidentAnswer, NoteBody
from omni_rl.consistency.incidents import IncidentKind
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader, Syncer
from omni_rl_services.coordinator.params import MAX_ID, IncidentPath, LimitQuery
from omni_rl_services.coordinator.problems import documented

router = APIRouter(prefix="/v1/incidents", tags=["incidents"])
Open = Annotated[bool | None, Query(description="true: open incidents; false: ended ones; without it, both.")]
OfRun = Annotated[str | None, Query(pattern=NAME, description="Only incidents of this run.")]
OfKind = Annotated[IncidentKind | None, Query(description="Only incidents of this kind.")]
Before = Annotated[int | None, Query(ge=1, le=MAX_ID, description="Only numbers below this one: the next page.")]


@router.get("", responses=documented(401, 403, 422, 503))
async def newest(
    coordinator: CoordinatorDep,
    caller: Reader,
    open: Open = None,  # noqa: A002 - the parameter's name
    run: OfRun = None,
    kind: OfKind = None,
    before: Before = None,
    limit: LimitQuery = 100,
) -> list[IncidentAnswer]:
    """Return incidents, the newest first, ended ones among them."""
    found = await coordinator.store.incidents(still_open=open, run=run, kind=kind, before=before, limit=limit)
    return [coordinator.incident_answer(one) for one in found]


@router.get("/{incident}", responses=documented(401, 403, 404, 422, 503))
async def one(incident: IncidentPath, coordinator: CoordinatorDep, caller: Reader) -> IncidentAnswer:
    """Return one incident."""
    return coordinator.incident_answer(await coordinator.store.incident(incident))


@router.post("/{incident}/acknowledge", responses=documented(401, 403, 404, 409, 422, 503))
async def acknowledge(incident: IncidentPath, coordinator: CoordinatorDep, caller: Syncer) -> IncidentAnswer:
    """Say that you take care of an incident. Saying so again changes nothing; if somebody else does, it is a
    conflict."""
    found = await coordinator.store.acknowledge(incident, caller.name)
    coordinator.events.poke()
    return coordinator.incident_answer(found)


@router.post("/{incident}/notes", responses=documented(401, 403, 404, 409, 413, 422, 503))
async def add_note(
    incident: IncidentPath, body: NoteBody, coordinator: CoordinatorDep, caller: Syncer
) -> IncidentAnswer:
    """Add a note to an incident, whether it has ended or not."""
    found = await coordinator.store.add_note(incident, caller.name, body.text)
    coordinator.events.poke()
    return coordinator.incident_answer(found)


@router.post("/{incident}/end", responses=documented(401, 403, 404, 409, 422, 503))
async def end(incident: IncidentPath, coordinator: CoordinatorDep, caller: Syncer) -> IncidentAnswer:
    """End an incident: its run is judged afresh, and what is still wrong opens another. If its run's gate is shut,
    resume the run instead (`POST /v1/resume`), which ends the incident."""
    return coordinator.incident_answer(await coordinator.end_incident(incident, caller.name))
