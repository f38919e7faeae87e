"""Routes for the limits that a run is judged by, and the alarms of version 0.1."""

from fastapi import APIRouter

from omni_rl.api.runs import LimitValues
from omni_rl.api.state import AlarmAnswer
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader
from omni_rl_services.coordinator.params import LimitQuery, RunPath
from omni_rl_services.coordinator.problems import documented
from omni_rl_services.coordinator.views import ALARMS, alarm_answer

router = APIRouter(prefix="/v1/runs/{run}", tags=["runs"])


@router.get("/limits", responses=documented(401, 403, 404, 422, 503))
async def limits(run: RunPath, coordinator: CoordinatorDep, caller: Reader) -> dict[str, dict[str, LimitValues]]:
    """Return the limits by kind and metric: the dtype's own, replaced by those that the run states. A kind without
    limits has `overall`'s."""
    return {
        kind: {name: LimitValues(warn=one.warn, mask=one.mask, pause=one.pause) for name, one in metrics.items()}
        for kind, metrics in (await coordinator.run(run)).yardstick.limits.items()
    }


@router.get("/alarms", responses=documented(401, 403, 404, 422, 503))
async def alarms(
    run: RunPath, coordinator: CoordinatorDep, caller: Reader, limit: LimitQuery = 100
) -> list[AlarmAnswer]:
    """Return a run's incidents of the kinds drift and update in the form of version 0.1; `GET /v1/incidents` says
    more."""
    await coordinator.run(run)
    return [alarm_answer(one) for one in await coordinator.store.incidents(run=run, kind=ALARMS, limit=limit)]
