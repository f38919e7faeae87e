"""What a run is judged by, and what it rang for."""

from fastapi import APIRouter

from omni_rl.api.runs import LimitValues
from omni_rl.api.state import AlarmAnswer
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader
from omni_rl_services.coordinator.params import LimitQuery, RunPath
from omni_rl_services.coordinator.problems import documented
from omni_rl_services.coordinator.views import ALARMS, alarm_answer

router = APIRouter(prefix="/v1/runs/{run}", tags=["runs"])


@router.get("/limits", responses=documented(401, 403, 404, 422))
async def limits(run: RunPath, coordinator: CoordinatorDep, caller: Reader) -> dict[str, dict[str, LimitValues]]:
    """By bucket and metric: the dtype's own, with the run's in their place. A kind without any has `overall`'s."""
    return {
        bucket: {name: LimitValues(warn=one.warn, mask=one.mask, pause=one.pause) for name, one in metrics.items()}
        for bucket, metrics in (await coordinator.run(run)).yardstick.limits.items()
    }


@router.get("/alarms", responses=documented(401, 403, 404, 422))
async def alarms(
    run: RunPath, coordinator: CoordinatorDep, caller: Reader, limit: LimitQuery = 100
) -> list[AlarmAnswer]:
    """A run's incidents of the kinds drift and update as version 0.1 told of them; `GET /v1/incidents` says more."""
    await coordinator.run(run)
    return [alarm_answer(one) for one in await coordinator.store.incidents(run=run, limit=limit) if one.kind in ALARMS]
