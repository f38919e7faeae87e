"""Jobs: the coordinator names them, and the bridge runs them. A job that has ended never changes, and stays in memory
here."""

import asyncio
import contextlib
import hashlib
import uuid

from omni_rl.api.jobs import ENDED, GrpoBody, GrpoParameters, JobAnswer, PpoBody, PpoParameters
from omni_rl.bridge.seam import Bridge, JobRequest
from omni_rl.errors import ConflictError, IdempotencyError, NotFoundError
from omni_rl.tasks.settings import require_task
from omni_rl_services.coordinator.events import Events
from omni_rl_services.coordinator.store import Store

KEPT = 256
"""The number of newest jobs in memory, each with the end of its output if it failed. Ray is asked about earlier
ones."""


class Jobs:
    """Submits jobs under names of our own: a key gives the same name, and so the same job."""

    def __init__(self, bridge: Bridge, store: Store, events: Events) -> None:
        self._bridge = bridge
        self._store = store
        self._events = events
        self._known: dict[str, JobAnswer] = {}
        self._listed = False
        self._turn = asyncio.Lock()

    async def submit(self, body: GrpoBody | PpoBody, key: str | None) -> JobAnswer:
        """Submit a job, once for each key.

        Raises:
            ConfigError: this host has tasks, and not the one that is asked for.
            ConflictError: the run is there already and is not to be resumed, or a job trains it now.
            NotFoundError: the run is to be resumed, and there is none.
        """
        unique = uuid.uuid4().hex if key is None else hashlib.sha256(key.encode()).hexdigest()
        request = JobRequest(f"{body.kind}-{unique[:12]}", body.kind, body.parameters.model_dump(mode="json"))
        # Two submissions at once would both find that no job trains the run.
        async with self._turn:
            if key is not None:
                with contextlib.suppress(NotFoundError):
                    return _again(await self.look(request.job), request)
            await self._require_possible(body.parameters)
            job = self._keep(await self._bridge.submit(request))
        await self._events.publish("job", body.parameters.run, job=job.job, status=job.status, what="submitted")
        return job

    async def _require_possible(self, parameters: GrpoParameters | PpoParameters) -> None:
        """Raise what the job would find out minutes later, in a log."""
        require_task(parameters.task)
        run = parameters.run
        await self._refresh()  # a job may have ended since, and a coordinator before this one may have submitted it
        trains = [job.job for job in self._newest() if job.status not in ENDED and job.parameters.get("run") == run]
        if trains:
            raise ConflictError(f"job {trains[0]} trains run {run} now: stop it first, or choose another name")
        try:
            await self._store.run(run)
        except NotFoundError:
            if parameters.resume:
                raise NotFoundError(f"there is no run {run} to resume; submit it without resume") from None
        else:
            if not parameters.resume:
                raise ConflictError(f"run {run} was there before: choose another name, or resume it (resume=true)")

    async def newest(self, limit: int) -> list[JobAnswer]:
        await self._refresh()
        return self._newest()[:limit]

    async def _refresh(self) -> None:
        """Ask the bridge for its jobs: for all of them once, and later for those that had not ended."""
        if self._listed:
            await asyncio.gather(*(self._again_asked(job.job) for job in self._newest() if job.status not in ENDED))
        else:
            for job in await self._bridge.jobs():
                self._keep(job)
            self._listed = True

    async def look(self, name: str) -> JobAnswer:
        known = self._known.get(name)
        if known is not None and known.status in ENDED:
            return known
        return self._keep(await self._bridge.job(name))

    async def stop(self, name: str) -> JobAnswer:
        job = self._keep(await self._bridge.stop(name))
        await self._events.publish("job", str(job.parameters["run"]), job=job.job, status=job.status, what="stopped")
        return job

    async def logs(self, name: str) -> str:
        return await self._bridge.logs(name)

    async def _again_asked(self, name: str) -> None:
        try:
            await self.look(name)
        except NotFoundError:  # the Ray cluster that had it is gone
            self._known.pop(name, None)

    def _keep(self, job: JobAnswer) -> JobAnswer:
        self._known[job.job] = job
        for old in self._newest()[KEPT:]:
            del self._known[old.job]
        return job

    def _newest(self) -> list[JobAnswer]:
        return sorted(self._known.values(), key=lambda job: job.submitted or 0.0, reverse=True)


def _again(job: JobAnswer, request: JobRequest) -> JobAnswer:
    if job.parameters != dict(request.parameters):
        raise IdempotencyError(f"this key came before, for job {job.job} with other parameters; use a new key")
    return job
