"""Submits jobs through Ray: one fixed entry point, submission ids of ours, parameters stored as metadata."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ray.job_submission import JobDetails, JobSubmissionClient

from omni_rl.api.jobs import JobAnswer, JobStatus
from omni_rl.bridge.seam import JobRequest
from omni_rl.errors import NotFoundError, RayUnavailableError

T = TypeVar("T")
STATUSES: Mapping[str, JobStatus] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
}
KIND, PARAMETERS = "omni_rl.kind", "omni_rl.parameters"
UNKNOWN = "status code 404"
"""The text in the client's error for a job that Ray does not know."""
TIMEOUT = (2.0, 20.0)
"""The seconds for Ray's dashboard to take a connection, and to send more of its answer."""
LOG_BYTES = 4 << 20
"""The most bytes of a job's output that are returned, from its end."""


class DeadlineClient(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, whose requests have a deadline: a dashboard that is stopped would keep their threads for ever."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, timeout=TIMEOUT, **options)


class RayJobs:
    """The jobs of a cluster whose dashboard is at `address`; only those that were submitted here."""

    def __init__(self, address: str, environment: Mapping[str, str]) -> None:
        self._address = address
        self._environment = dict(environment)
        self._client: DeadlineClient | None = None

    def submit(self, request: JobRequest) -> JobAnswer:
        """Submit a job. A second submission under the same id changes nothing."""
        known = self._known(request.job)
        if known is not None:
            return known
        parameters = json.dumps(dict(request.parameters))
        entrypoint = shlex.join([sys.executable, "-m", "omni_rl", "run", request.kind, "--parameters", parameters])
        try:
            self._ask(
                lambda ray: ray.submit_job(
                    entrypoint=entrypoint,
                    submission_id=request.job,
                    metadata={KIND: request.kind, PARAMETERS: parameters},
                    runtime_env={"env_vars": self._environment},
                )
            )
        except RayUnavailableError:
            # Another caller may have submitted the job meanwhile.
            if (known := self._known(request.job)) is None:
                raise
            return known
        return self.job(request.job)

    def all(self) -> list[JobAnswer]:
        found = self._ask(lambda ray: ray.list_jobs())
        return [_job(details) for details in found if KIND in (details.metadata or {})]

    def job(self, name: str) -> JobAnswer:
        """Return the job of that name. Raises `NotFoundError`."""
        job = self._known(name)
        if job is None:
            raise NotFoundError(f"there is no job {name!r}")
        return job

    def stop(self, job: str) -> JobAnswer:
        self.job(job)
        self._ask(lambda ray: ray.stop_job(job))
        return self.job(job)

    def logs(self, job: str) -> str:
        self.job(job)
        text: str = self._ask(lambda ray: ray.get_job_logs(job))
        return text[-LOG_BYTES:]

    def _known(self, name: str) -> JobAnswer | None:
        try:
            details = self._ask(lambda ray: ray.get_job_info(name))
        except RayUnavailableError as error:
            if UNKNOWN in str(error):
                return None
            raise
        return _job(details) if KIND in (details.metadata or {}) else None

    def _ask(self, call: Callable[[JobSubmissionClient], T]) -> T:
        try:
            # One client serves all calls: making one costs a request of its own.
            self._client = self._client or DeadlineClient(self._address)
            return call(self._client)
        except (OSError, RuntimeError) as error:
            raise RayUnavailableError(f"Ray's job server at {self._address}: {error}") from error


def _job(details: JobDetails) -> JobAnswer:
    metadata: Mapping[str, Any] = details.metadata
    return JobAnswer(
        job=details.submission_id,
        kind=metadata[KIND],
        status=STATUSES[details.status],
        message=details.message or "",
        submitted=None if details.start_time is None else details.start_time / 1000,
        ended=None if not details.end_time else details.end_time / 1000,
        parameters=json.loads(metadata[PARAMETERS]),
    )
