"""Routes for the gate of generation, and for the state of everything."""

from fastapi import APIRouter

from omni_rl.api.state import GateAnswer, PauseBody, ResumeBody, StateAnswer
from omni_rl_services.coordinator.deps import Admin, CoordinatorDep, Reader
from omni_rl_services.coordinator.problems import documented

router = APIRouter(prefix="/v1", tags=["state"])


@router.get("/state", responses=documented(401, 403))
async def state(coordinator: CoordinatorDep, caller: Reader) -> StateAnswer:
    """Return the state of the gate, the cluster and the runs, the sync under way, and the open incidents."""
    return await coordinator.state()


@router.post("/pause", responses=documented(401, 403, 413, 422, 503))
async def pause(body: PauseBody, coordinator: CoordinatorDep, caller: Admin) -> GateAnswer:
    """Stop generation between two engine steps, until somebody resumes it."""
    return await coordinator.pause(f"{body.reason} (by {caller.name})")


@router.post("/resume", responses=documented(401, 403, 404, 409, 413, 422, 503))
async def resume(coordinator: CoordinatorDep, caller: Admin, body: ResumeBody | None = None) -> GateAnswer:
    """Let generation go on. The caller vouches for the run whose drift had closed the gate; where several runs hold it,
    each is resumed by its name."""
    return await coordinator.resume(f"resumed by {caller.name}", None if body is None else body.run)
