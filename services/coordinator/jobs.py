"""Jobs: the coordinator names them, the bridge runs them."""

import hashlib
import uuid
from dataclasses import asdict

from omni_rl.api.jobs import GrpoBody, JobAnswer, PpoBody
from omni_rl.errors import IdempotencyError, NotFoundError
from services.coordinator.bridge import Bridge, Job, JobRequest
from services.coordinator.events import Events


class Jobs:
    """Submission with names of our own: a key gives the same name, and so the same job."""

    def __init__(self, bridge: Bridge, events: Events) -> None:
        self._bridge = bridge
        self._events = events

    async def submit(self, body: GrpoBody | PpoBody, key: str | None) -> JobAnswer:
        unique = uuid.uuid4().hex if key is None else hashlib.sha256(key.encode()).hexdigest()
        request = JobRequest(f"{body.kind}-{unique[:12]}", body.kind, body.parameters.model_dump(mode="json"))
        if key is not None:
            for job in await self._bridge.jobs():
                if job.job == request.job:
                    return _again(job, request)
        job = await self._bridge.submit(request)
        await self._events.publish("job", body.parameters.run, job=job.job, status=job.status, what="submitted")
        return _answer(job)

    async def newest(self) -> list[JobAnswer]:
        jobs = await self._bridge.jobs()
        return [_answer(job) for job in sorted(jobs, key=lambda job: job.submitted or 0.0, reverse=True)]

    async def look(self, name: str) -> JobAnswer:
        for job in await self._bridge.jobs():
            if job.job == name:
                return _answer(job)
        raise NotFoundError(f"there is no job {name!r}")

    async def stop(self, name: str) -> JobAnswer:
        job = await self._bridge.stop(name)
        await self._events.publish("job", str(job.parameters["run"]), job=job.job, status=job.status, what="stopped")
        return _answer(job)

    async def logs(self, name: str) -> str:
        return await self._bridge.logs(name)


def _again(job: Job, request: JobRequest) -> JobAnswer:
    if dict(job.parameters) != dict(request.parameters):
        raise IdempotencyError(f"this key came before, for job {job.job} with other parameters; use a new key")
    return _answer(job)


def _answer(job: Job) -> JobAnswer:
    return JobAnswer(**asdict(job))
