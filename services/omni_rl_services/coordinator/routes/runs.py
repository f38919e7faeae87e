"""Routes for runs, which are registered once and judged at every step."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from omni_rl.api.base import MAX_INT, NO_NUL
from omni_rl.api.runs import AttemptAnswer, RunAnswer, RunBody, RunLine
from omni_rl.consistency.need import Need, NeedName
from omni_rl.ledger.run_list import Order, Wanted
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader, Syncer
from omni_rl_services.coordinator.params import LimitQuery, RunPath
from omni_rl_services.coordinator.problems import documented

router = APIRouter(prefix="/v1/runs", tags=["runs"])
TOTAL = "Total-Count"


@router.post("", status_code=201, responses={200: {"model": RunAnswer}, **documented(401, 403, 409, 413, 422, 503)})
async def create(body: RunBody, coordinator: CoordinatorDep, caller: Syncer, response: Response) -> RunAnswer:
    """Register a run. Registering it again as it is changes nothing (200); another run under the same name is a
    conflict."""
    run, new = await coordinator.create_run(body)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/runs/{run.name}"
    return run.answer()


@router.get(
    "",
    responses={
        200: {
            "headers": {TOTAL: {"schema": {"type": "integer"}, "description": "How many runs there are on all pages."}}
        },
        **documented(401, 403, 422, 503),
    },
)
async def all_runs(
    coordinator: CoordinatorDep,
    caller: Reader,
    response: Response,
    search: Annotated[
        str, Query(max_length=64, pattern=NO_NUL, description="A part of the run's name, in any case.")
    ] = "",
    need: Annotated[list[NeedName] | None, Query(max_length=len(Need), description="Only runs of these needs.")] = None,
    sort: Annotated[Order, Query(description="need: the most urgent first, then the latest step.")] = "newest",
    offset: Annotated[int, Query(ge=0, le=MAX_INT, description="How many runs to skip: the next page.")] = 0,
    limit: LimitQuery = 100,
) -> list[RunLine]:
    """Return runs, a line for each, searched and filtered; the newest first, or the most urgent."""
    needs = tuple(Need[name.upper()] for name in need or ())
    lines, total = await coordinator.listed(Wanted(search, needs, sort, offset, limit))
    response.headers[TOTAL] = str(total)
    return lines


@router.post("/{run}/end", responses=documented(401, 403, 404, 422, 503))
async def end(run: RunPath, coordinator: CoordinatorDep, caller: Syncer) -> RunAnswer:
    """Say that a run is over, so that it does not count as silent. Its next step, if there is one, makes it live
    again."""
    return (await coordinator.end_run(run)).answer()


@router.get("/{run}", responses=documented(401, 403, 404, 422, 503))
async def one(run: RunPath, coordinator: CoordinatorDep, caller: Reader) -> RunLine:
    """Return one run, with its latest step and how much it needs a person."""
    return await coordinator.line(run)


@router.get("/{run}/attempts", responses=documented(401, 403, 404, 422, 503))
async def attempts(run: RunPath, coordinator: CoordinatorDep, caller: Reader) -> list[AttemptAnswer]:
    """Return each attempt of a run with its first and last steps, oldest first."""
    return await coordinator.store.attempts(run)
