"""The app: routes, guards, and the start and end of the coordinator around them."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_rl import __version__
from omni_rl.bridge.seam import Bridge, NoBridge
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.schema import VERSION as RECORDS_VERSION
from omni_rl_services.coordinator.answers import ChunkedAnswers
from omni_rl_services.coordinator.auth import SESSION_COOKIE, caller_of
from omni_rl_services.coordinator.bodies import Bodies
from omni_rl_services.coordinator.core import Coordinator
from omni_rl_services.coordinator.guard import HeadGuard, SecurityHeaders, Unexpected
from omni_rl_services.coordinator.openapi import complete
from omni_rl_services.coordinator.problems import add_handlers
from omni_rl_services.coordinator.routes import (
    alarms,
    dashboard,
    events,
    gate,
    health,
    incidents,
    jobs,
    media,
    runs,
    session,
    steps,
    syncs,
    updates,
)
from omni_rl_services.coordinator.settings import CoordinatorSettings
from omni_rl_services.coordinator.silence import CLOCK, MONOTONIC, Clock
from omni_rl_services.coordinator.sinks import Sink
from omni_rl_services.coordinator.telemetry import Telemetry

ROUTERS = (health, session, gate, runs, alarms, incidents, steps, updates, syncs, jobs, events, media, dashboard)
DESCRIPTION = """Keeps an RL run honest: the policy that samples and the policy that learns must be the same function.

Post a step's logprobs of both (`PUT …/parts/{rank}`, then `POST …/seal`) and get a verdict; ask for weight syncs that
are proven byte by byte; follow what happens (`/v1/events`). Errors are problem+json with a stable `code`.
"""


def create_app(
    settings: CoordinatorSettings,
    *,
    ledger: Ledger | None = None,
    bridge: Bridge | None = None,
    sinks: Sequence[Sink] = (),
    clock: Clock = CLOCK,
    monotonic: Clock = MONOTONIC,
) -> FastAPI:
    """Return the coordinator as an ASGI app, for one worker: the app is the only writer of its runs.

    Without a `ledger` the app opens the one that the settings name; without a `bridge` there is no Ray cluster. It
    closes both at its end. A run counts as silent by `clock`, in Unix seconds, and by `monotonic`, a clock that nobody
    sets.

    Raises:
        CoordinatorRunningError: another process is the ledger's coordinator.
    """
    opened = ledger or Ledger.open(settings.ledger)
    try:
        opened.take()
    except BaseException:
        opened.close()
        raise
    coordinator = Coordinator(settings, opened, bridge or NoBridge(), sinks, clock, monotonic)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await coordinator.open()
        try:
            yield
        finally:
            await coordinator.close()

    app = FastAPI(
        title="omni-rl coordinator",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        # The pages that FastAPI would serve load scripts from elsewhere; the document is served by `complete`.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.coordinator = coordinator
    # `include_router` would build every route once more, with nothing added, which takes longer than all else here.
    app.router.routes += [route for module in ROUTERS for route in module.router.routes]
    add_handlers(app)
    complete(app, RECORDS_VERSION)
    # The last one added is the outermost.
    app.add_middleware(Bodies, bounds=settings.bounds, knows=partial(_knows, coordinator))
    app.add_middleware(HeadGuard, hosts=None if coordinator.tokens else (settings.host, *settings.allowed_hosts))
    app.add_middleware(RequestCounter, telemetry=coordinator.telemetry)
    app.add_middleware(Unexpected)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(ChunkedAnswers)
    return app


def _knows(coordinator: Coordinator, request: HTTPConnection) -> bool:
    """Return whether a request's head says who sent it; the route asks again, with the scope that it needs."""
    scheme, token = get_authorization_scheme_param(request.headers.get("authorization"))
    bearer = token if scheme.lower() == "bearer" else None
    session = request.cookies.get(SESSION_COOKIE)
    return caller_of(coordinator.tokens, coordinator.sessions, bearer, session) is not None


class RequestCounter:
    """Middleware that counts requests by route, so that a path with a name in it is not a label of its own."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = scope["route"].path if "route" in scope else "none"
            # A method that a route does not have is no series of its own either.
            method = scope["method"] if scope["method"] in METHODS and status != 405 else "other"
            self._telemetry.requests.labels(method, route, str(status)).inc()
            self._telemetry.request_seconds.labels(method, route).observe(time.perf_counter() - began)


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
