"""Routes for updates of weights in engines that are not ours: agents and trainers report them, and they are compared at
once."""

from typing import Any

from fastapi import APIRouter, Request

from omni_rl.api.updates import AnnouncementBody, ReceiptBody, UpdateAnswer
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader, Syncer
from omni_rl_services.coordinator.openapi import REF
from omni_rl_services.coordinator.params import EnginePath, LimitQuery, RunPath, UpdatePath
from omni_rl_services.coordinator.problems import documented

router = APIRouter(prefix="/v1/runs/{run}", tags=["updates"])


def _body(model: type[ReceiptBody] | type[AnnouncementBody]) -> dict[str, Any]:
    """Return the body for the OpenAPI document: it is read in a thread of its own, not by FastAPI."""
    schema = {"$ref": REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.put(
    "/engines/{engine}/updates/{update}",
    responses=documented(401, 403, 404, 409, 413, 422, 503),
    openapi_extra=_body(ReceiptBody),
)
async def put_receipt(
    run: RunPath,
    engine: EnginePath,
    update: UpdatePath,
    request: Request,
    coordinator: CoordinatorDep,
    caller: Syncer,
) -> UpdateAnswer:
    """Report what one worker of an engine holds after an update. It is compared with the trainer's weights once all
    workers have reported.

    Reporting the same content again changes nothing; other content is a conflict.
    """
    of = await coordinator.run(run)
    return await coordinator.updates.receive(of, engine, update, await request.body())


@router.put(
    "/updates/{update}",
    responses=documented(401, 403, 404, 409, 413, 422, 503),
    openapi_extra=_body(AnnouncementBody),
)
async def put_announcement(
    run: RunPath,
    update: UpdatePath,
    request: Request,
    coordinator: CoordinatorDep,
    caller: Syncer,
) -> UpdateAnswer:
    """Announce the trainer's weights, before they are sent to any engine.

    Announcing the same content again changes nothing; other content is a conflict.
    """
    of = await coordinator.run(run)
    return await coordinator.updates.announce(of, update, await request.body())


@router.get("/updates", responses=documented(401, 403, 404, 422, 503))
async def newest(
    run: RunPath, coordinator: CoordinatorDep, caller: Reader, limit: LimitQuery = 100
) -> list[UpdateAnswer]:
    """Return updates of a run, the engines' and the trainer's, the newest first."""
    await coordinator.run(run)
    return await coordinator.updates.newest(run, limit)
