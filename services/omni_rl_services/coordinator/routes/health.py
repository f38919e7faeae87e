"""Routes for whatever keeps the process alive, and for Prometheus."""

from fastapi import APIRouter, Response

from omni_rl.api.state import ReadyAnswer
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader
from omni_rl_services.coordinator.problems import documented
from omni_rl_services.coordinator.telemetry import CONTENT_TYPE

router = APIRouter(tags=["health"])


@router.get("/healthz", responses=documented(403))
async def healthz() -> dict[str, str]:
    """Answer, so that a supervisor sees that this process runs."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": ReadyAnswer}, **documented(403)})
async def readyz(coordinator: CoordinatorDep, response: Response) -> ReadyAnswer:
    """Return whether the ledger can be written, and every actor of the cluster answered (where there is a cluster)."""
    answer = await coordinator.ready()
    response.status_code = 200 if answer.ready else 503
    return answer


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **documented(401, 403, 503)}
)
async def metrics(coordinator: CoordinatorDep, caller: Reader) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(await coordinator.metrics(), media_type=CONTENT_TYPE)
