"""Jobs through Ray's own submission: one fixed entry point, submission ids of ours, parameters kept as metadata."""

import json
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from ray.job_submission import JobDetails, JobSubmissionClient

from omni_rl.api.jobs import JobStatus
from omni_rl.errors import NotFoundError, RayUnavailableError
from services.coordinator.bridge import Job, JobRequest

STATUSES: Mapping[str, JobStatus] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
}
KIND, PARAMETERS = "omni_rl.kind", "omni_rl.parameters"
LOG_BYTES = 4 << 20
"""Of a job's output, its end."""


class Jobs:
    """Of a cluster whose dashboard is at `address`; only those that were submitted here."""

    def __init__(self, address: str, environment: Mapping[str, str]) -> None:
        self._address = address
        self._environment = dict(environment)

    def submit(self, request: JobRequest) -> Job:
        """A second submission under the same id changes nothing."""
        known = self._known(request.job)
        if known is not None:
            return known
        parameters = json.dumps(dict(request.parameters))
        entrypoint = shlex.join([sys.executable, "-m", "omni_rl", "run", request.kind, "--parameters", parameters])
        try:
            self._client().submit_job(
                entrypoint=entrypoint,
                submission_id=request.job,
                metadata={KIND: request.kind, PARAMETERS: parameters},
                runtime_env={"env_vars": self._environment},
            )
        except RuntimeError as error:
            # Somebody else may have submitted it meanwhile.
            if (known := self._known(request.job)) is None:
                raise RayUnavailableError(f"Ray did not take the job: {error}") from error
            return known
        return self._job(request.job)

    def all(self) -> list[Job]:
        try:
            found = self._client().list_jobs()
        except RuntimeError as error:
            raise RayUnavailableError(f"Ray does not tell of its jobs: {error}") from error
        return [_job(details) for details in found if KIND in (details.metadata or {})]

    def stop(self, job: str) -> Job:
        self._job(job)
        self._client().stop_job(job)
        return self._job(job)

    def logs(self, job: str) -> str:
        self._job(job)
        text: str = self._client().get_job_logs(job)
        return text[-LOG_BYTES:]

    def _job(self, name: str) -> Job:
        job = self._known(name)
        if job is None:
            raise NotFoundError(f"there is no job {name!r}")
        return job

    def _known(self, name: str) -> Job | None:
        return next((job for job in self.all() if job.job == name), None)

    def _client(self) -> JobSubmissionClient:
        try:
            return JobSubmissionClient(self._address)
        except (ConnectionError, RuntimeError) as error:
            raise RayUnavailableError(f"Ray's job server at {self._address} does not answer: {error}") from error


def _job(details: JobDetails) -> Job:
    metadata: Mapping[str, Any] = details.metadata
    return Job(
        job=details.submission_id,
        kind=metadata[KIND],
        status=STATUSES[details.status],
        message=details.message or "",
        submitted=None if details.start_time is None else details.start_time / 1000,
        ended=None if not details.end_time else details.end_time / 1000,
        parameters=json.loads(metadata[PARAMETERS]),
    )
