"""Routes for weight syncs, which are transactions over every replica, and for checks."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response

from omni_rl.api.base import MAX_INT, NAME
from omni_rl.api.syncs import CheckAnswer, CheckBody, SyncAnswer, SyncBody
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader, Syncer
from omni_rl_services.coordinator.params import CheckPath, LimitQuery
from omni_rl_services.coordinator.problems import documented

router = APIRouter(prefix="/v1", tags=["syncs"])
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,128}$",
        description="The same key is the same operation: it runs once, and everyone gets its result.",
    ),
]
Wait = Annotated[bool, Query(description="Answer when the sync is over, with its result.")]
SyncPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9-]{1,64}$", examples=["3f1c9a20be77"])]


@router.post(
    "/syncs",
    status_code=202,
    responses={
        200: {"model": SyncAnswer, "description": "The sync is over (with `wait=true`, or a key that came before)."},
        **documented(401, 403, 409, 413, 422, 503),
    },
)
async def begin(
    body: SyncBody,
    coordinator: CoordinatorDep,
    caller: Syncer,
    response: Response,
    wait: Wait = False,
    key: Key = None,
) -> SyncAnswer:
    """Bring weights to every replica, proven byte by byte. While a sync runs, another is refused, naming the first."""
    sync = await coordinator.syncs.begin(body, key)
    if wait:
        await coordinator.syncs.wait(sync)
    answer = await coordinator.syncs.look(sync)
    response.status_code = 202 if answer.state == "running" else 200
    response.headers["Location"] = f"/v1/syncs/{sync}"
    return answer


@router.get("/syncs", responses=documented(401, 403, 422, 503))
async def history(coordinator: CoordinatorDep, caller: Reader, limit: LimitQuery = 100) -> list[SyncAnswer]:
    """Return syncs, the newest first."""
    return await coordinator.syncs.newest(limit)


@router.get("/syncs/{sync}", responses=documented(401, 403, 404, 422, 503))
async def one(sync: SyncPath, coordinator: CoordinatorDep, caller: Reader) -> SyncAnswer:
    """Return one sync with its phases."""
    return await coordinator.syncs.look(sync)


@router.post("/checks", responses=documented(401, 403, 404, 409, 413, 422, 503))
async def check(body: CheckBody, coordinator: CoordinatorDep, caller: Syncer) -> CheckAnswer:
    """Compare both policies now, on the canonical probe or on a step's worst samples. The result is stored; nothing
    else changes."""
    return await coordinator.check(body)


@router.get("/checks", responses=documented(401, 403, 422, 503))
async def checks(
    coordinator: CoordinatorDep,
    caller: Reader,
    limit: LimitQuery = 100,
    run: Annotated[str | None, Query(pattern=NAME, description="Only checks about steps of this run.")] = None,
    attempt: Annotated[
        int | None, Query(ge=0, le=MAX_INT, description="Only checks about steps of this attempt.")
    ] = None,
    step: Annotated[int | None, Query(ge=0, le=MAX_INT, description="Only checks about this step.")] = None,
) -> list[CheckAnswer]:
    """Return checks, the newest first, with their evidence alone; one that is asked for by its number has its figures
    too."""
    return await coordinator.checks.newest(limit, run, attempt, step)


@router.get("/checks/{check}", responses=documented(401, 403, 404, 422, 503))
async def one_check(check: CheckPath, coordinator: CoordinatorDep, caller: Reader) -> CheckAnswer:
    """Return one check, whole."""
    return await coordinator.checks.one(check)
