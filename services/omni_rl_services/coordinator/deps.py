"""Dependencies of routes: the coordinator, and a caller whose scope reaches far enough."""

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from omni_rl.api.state import Scope
from omni_rl.errors import ForbiddenError, UnauthenticatedError
from omni_rl_services.coordinator.auth import ASK_FOR_ONE, SESSION_COOKIE, Caller, caller_of
from omni_rl_services.coordinator.core import Coordinator

_bearer = HTTPBearer(auto_error=False, scheme_name="token", description="`Authorization: Bearer TOKEN`")
_cookie = APIKeyCookie(
    name=SESSION_COOKIE, auto_error=False, scheme_name="session", description="The dashboard's: POST /v1/session."
)


async def coordinator(request: Request) -> Coordinator:
    result: Coordinator = request.app.state.coordinator
    return result


CoordinatorDep = Annotated[Coordinator, Depends(coordinator)]


async def caller(
    coordinator: CoordinatorDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    session: Annotated[str | None, Security(_cookie)],
) -> Caller:
    """Return the sender of a request. Raises `UnauthenticatedError` if it is not known."""
    token = None if bearer is None else bearer.credentials
    found = caller_of(coordinator.tokens, coordinator.sessions, token, session)
    if found is None:
        raise UnauthenticatedError(ASK_FOR_ONE if token is None else "this coordinator does not know that token")
    return found


CallerDep = Annotated[Caller, Depends(caller)]


def _need(caller: Caller, scope: Scope) -> Caller:
    if not caller.scope.covers(scope):
        raise ForbiddenError(f"this takes scope {scope}; {caller.name} has {caller.scope}")
    return caller


async def reader(caller: CallerDep) -> Caller:
    return _need(caller, Scope.READ)


async def syncer(caller: CallerDep) -> Caller:
    return _need(caller, Scope.SYNC)


async def admin(caller: CallerDep) -> Caller:
    return _need(caller, Scope.ADMIN)


Reader = Annotated[Caller, Depends(reader)]
Syncer = Annotated[Caller, Depends(syncer)]
Admin = Annotated[Caller, Depends(admin)]
