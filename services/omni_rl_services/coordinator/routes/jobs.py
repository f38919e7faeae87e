"""Routes for jobs on the Ray cluster."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import PlainTextResponse

from omni_rl.api.jobs import JobAnswer, JobBody
from omni_rl_services.coordinator.deps import Admin, CoordinatorDep, Reader
from omni_rl_services.coordinator.params import LimitQuery
from omni_rl_services.coordinator.problems import documented

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
JobPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", examples=["grpo-5b2e91c04d7a"])]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,128}$",
        description="The same key is the same job: it is submitted once.",
    ),
]


@router.post("", status_code=201, responses=documented(401, 403, 404, 409, 413, 422, 503))
async def submit(
    body: JobBody, coordinator: CoordinatorDep, caller: Admin, response: Response, key: Key = None
) -> JobAnswer:
    """Submit a GRPO or PPO job. A run that exists is trained again only to be resumed, and by one job at a time."""
    job = await coordinator.jobs.submit(body, key)
    response.headers["Location"] = f"/v1/jobs/{job.job}"
    return job


@router.get("", responses=documented(401, 403, 422, 503))
async def all_jobs(coordinator: CoordinatorDep, caller: Reader, limit: LimitQuery = 100) -> list[JobAnswer]:
    """Return jobs, the newest first. Ended jobs are answered for without Ray; of those, the newest are remembered."""
    return await coordinator.jobs.newest(limit)


@router.get("/{job}", responses=documented(401, 403, 404, 422, 503))
async def one(job: JobPath, coordinator: CoordinatorDep, caller: Reader) -> JobAnswer:
    """Return one job."""
    return await coordinator.jobs.look(job)


@router.delete("/{job}", responses=documented(401, 403, 404, 422, 503))
async def stop(job: JobPath, coordinator: CoordinatorDep, caller: Admin) -> JobAnswer:
    """Stop a job. What it has saved stays."""
    return await coordinator.jobs.stop(job)


@router.get(
    "/{job}/logs",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {}}}, **documented(401, 403, 404, 422, 503)},
)
async def logs(job: JobPath, coordinator: CoordinatorDep, caller: Reader) -> PlainTextResponse:
    """Return everything that the job has printed."""
    return PlainTextResponse(await coordinator.jobs.logs(job))
