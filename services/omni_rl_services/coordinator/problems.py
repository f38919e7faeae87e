"""Answers every error as problem+json (RFC 9457) with the stable code of its class."""

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from omni_rl import errors
from omni_rl.api.base import MOST_ERRORS
from omni_rl.errors import OmniRLError, SyncRunningError

logger = logging.getLogger("omni_rl.coordinator")
MEDIA_TYPE = "application/problem+json"
DETAIL, WHERE = 4096, 256
"""The most characters of a problem's detail, and of the path to a value: they quote what was sent."""

STATUS: Mapping[type[OmniRLError], int] = {
    errors.InvalidRequestError: 422,
    errors.RecordError: 422,
    errors.ConfigError: 422,
    errors.MediaError: 422,
    errors.PromptError: 422,
    errors.CheckpointError: 422,
    errors.SamplingError: 422,
    errors.UnauthenticatedError: 401,
    errors.ForbiddenError: 403,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.IdempotencyError: 409,
    errors.SyncRunningError: 409,
    errors.WeightsMovedError: 409,
    errors.SyncRolledBackError: 409,
    errors.FencedError: 409,
    errors.TooSlowError: 408,
    errors.TooLargeError: 413,
    errors.UnsupportedMediaTypeError: 415,
    errors.TooManyError: 429,
    errors.RayUnavailableError: 503,
    errors.LedgerError: 503,
    errors.MediaStoreError: 503,
    errors.JournalError: 503,
    errors.SyncUndecidedError: 503,
    errors.QuarantinedError: 503,
    errors.EngineDeadError: 503,
    errors.TrainerDeadError: 503,
    errors.TrainerStoppedError: 503,
    errors.ReplicaSilentError: 503,
    errors.ReplicaStoppedError: 503,
    errors.SlabError: 503,
    errors.SourceError: 503,
    errors.WeightUpdateError: 503,
}
"""The HTTP status of each class of error. The most specific class decides; one that is not here is a fault of ours:
500."""

OF_STATUS: Mapping[int, type[OmniRLError]] = {
    401: errors.UnauthenticatedError,
    403: errors.ForbiddenError,
    404: errors.NotFoundError,
    405: errors.InvalidRequestError,
    408: errors.TooSlowError,
    413: errors.TooLargeError,
    415: errors.UnsupportedMediaTypeError,
}
"""The class of error for what the framework itself refuses, by status."""


class SyncIsRunningError(SyncRunningError):
    """The error of a sync under way, which carries the sync's name beside the message."""

    def __init__(self, sync: str) -> None:
        super().__init__(f"sync {sync} is under way; wait for it: GET /v1/syncs/{sync}")
        self.sync = sync


class FieldProblem(BaseModel):
    """One value that is not as it should be."""

    where: str = Field(description="The path to the value, as in `body.limits.text.warn`.")
    message: str


class Problem(BaseModel):
    """The form of every error. Programs branch on `code`, people read `detail`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:omni-rl:not_found",
                    "title": "There is no run, step, sample, sync or job of that name.",
                    "status": 404,
                    "detail": "there is no run 'digits'",
                    "code": "not_found",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    fields: list[FieldProblem] | None = Field(default=None, description="With `invalid_request`: the bad values.")
    sync: str | None = Field(default=None, description="With `sync_running`: the sync under way.")


def status_of(error: OmniRLError) -> int:
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def respond(
    kind: type[OmniRLError], status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    title = (
        "The coordinator failed."
        if status == 500
        else (inspect.getdoc(kind) or kind.__name__).split("\n\n")[0].replace("\n", " ")
    )
    problem = Problem(
        type=f"urn:omni-rl:{kind.code}", title=title, status=status, detail=detail[:DETAIL], code=kind.code, **more
    )
    return JSONResponse(
        problem.model_dump(exclude_none=True), status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def add_handlers(app: FastAPI) -> None:
    @app.exception_handler(SyncIsRunningError)
    async def running(request: Request, error: SyncIsRunningError) -> JSONResponse:
        return respond(SyncRunningError, 409, str(error), {"Location": f"/v1/syncs/{error.sync}"}, sync=error.sync)

    @app.exception_handler(OmniRLError)
    async def ours(request: Request, error: OmniRLError) -> JSONResponse:
        status = status_of(error)
        if status == 500:
            logger.error("%s %s failed: %s", request.method, request.url.path, error, exc_info=error)
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
        return respond(type(error), status, str(error), headers.get(status))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Pydantic's own report quotes what was sent, which may be a token.
        found = [
            FieldProblem(where=".".join(map(str, item["loc"]))[:WHERE], message=item["msg"][:DETAIL])
            for item in error.errors()[:MOST_ERRORS]
        ]
        detail = "; ".join(f"{item.where}: {item.message}" for item in found[:5])
        return respond(errors.InvalidRequestError, 422, detail, fields=found)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        # A body that cannot be decoded is 400 to the framework, one that cannot be parsed is 422: here they are one.
        status = 422 if error.status_code == 400 else error.status_code
        kind = OF_STATUS.get(status, errors.InvalidRequestError)
        return respond(kind, status, f"{request.method} {request.url.path}: {error.detail}", error.headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: the problems that it may answer with. A body may be too slow, or find no
    memory."""
    if 413 in statuses:
        statuses = tuple(sorted({*statuses, 408, 429}))
    return {status: {"model": Problem, "description": _DESCRIBED[status]} for status in statuses}


_DESCRIBED = {
    401: "No token, or an unknown one (`unauthenticated`).",
    403: "The token's scope does not reach that far, or another site's page sent it (`forbidden`).",
    404: "No such thing (`not_found`).",
    405: "The path does not take this method.",
    408: "The body comes too slowly (`too_slow`).",
    409: "It contradicts what is there (`conflict`, `idempotency_mismatch`, `sync_running`), or a sync changed nothing "
    "(`sync_rolled_back`, `non_finite_weights`).",
    413: "Too many bytes, pixels, frames or samples (`too_large`).",
    415: "A content type that is not read here (`unsupported_media_type`).",
    422: "A value is not as it should be (`invalid_request` and others).",
    429: "Too much at once; try again later (`too_many`).",
    503: "The Ray cluster does not answer (`ray_unavailable`); what it runs failed; or the ledger (`ledger_failed`).",
}
