"""Runs: made once, judged at every step."""

from fastapi import APIRouter, Response

from omni_rl.api.runs import RunAnswer, RunBody
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader, Syncer
from omni_rl_services.coordinator.params import LimitQuery, RunPath
from omni_rl_services.coordinator.problems import documented

router = APIRouter(prefix="/v1/runs", tags=["runs"])


@router.post("", status_code=201, responses={200: {"model": RunAnswer}, **documented(401, 403, 409, 413, 422)})
async def create(body: RunBody, coordinator: CoordinatorDep, caller: Syncer, response: Response) -> RunAnswer:
    """Make a run. The same again is fine (200); another run under the same name is a conflict."""
    run, new = await coordinator.create_run(body)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/runs/{run.name}"
    return run.answer()


@router.get("", responses=documented(401, 403, 422))
async def all_runs(coordinator: CoordinatorDep, caller: Reader, limit: LimitQuery = 100) -> list[RunAnswer]:
    """Runs, the newest first."""
    return [run.answer() for run in await coordinator.newest_runs(limit)]


@router.post("/{run}/end", responses=documented(401, 403, 404, 422))
async def end(run: RunPath, coordinator: CoordinatorDep, caller: Syncer) -> RunAnswer:
    """Say that a run is over: that no step comes is no silence then. Its next step, if there is one, makes it live."""
    return (await coordinator.end_run(run)).answer()


@router.get("/{run}", responses=documented(401, 403, 404, 422))
async def one(run: RunPath, coordinator: CoordinatorDep, caller: Reader) -> RunAnswer:
    """One run, and where it stands."""
    return (await coordinator.run(run)).answer()
