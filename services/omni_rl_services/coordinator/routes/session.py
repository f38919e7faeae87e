"""Routes for the dashboard's login, which gives a cookie that no script can read for a token."""

from typing import Annotated

from fastapi import APIRouter, Cookie, Response

from omni_rl.api.state import SessionAnswer, SessionBody
from omni_rl.errors import UnauthenticatedError
from omni_rl_services.coordinator.auth import LOCAL, SESSION_COOKIE, SESSION_SECONDS
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader
from omni_rl_services.coordinator.problems import documented

router = APIRouter(prefix="/v1/session", tags=["session"])


@router.post("", responses=documented(401, 403, 413, 422))
async def begin(body: SessionBody, coordinator: CoordinatorDep, response: Response) -> SessionAnswer:
    """Log in: the answer sets a cookie that lasts a working day."""
    if not coordinator.tokens:
        return SessionAnswer(name=LOCAL.name, scope=LOCAL.scope, open=True)
    caller = coordinator.tokens.caller(body.token.get_secret_value())
    if caller is None:
        raise UnauthenticatedError("this coordinator does not know that token")
    response.set_cookie(
        SESSION_COOKIE,
        coordinator.sessions.begin(caller),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=coordinator.settings.cookies_are_secure,
    )
    return SessionAnswer(name=caller.name, scope=caller.scope, open=False)


@router.get("", responses=documented(401, 403))
async def look(caller: Reader, coordinator: CoordinatorDep) -> SessionAnswer:
    """Return who is asking, and what they may do."""
    return SessionAnswer(name=caller.name, scope=caller.scope, open=not coordinator.tokens)


@router.delete("", status_code=204, responses=documented(403))
async def end(
    coordinator: CoordinatorDep, response: Response, session: Annotated[str | None, Cookie(alias=SESSION_COOKIE)] = None
) -> None:
    """Log out: the session ends."""
    if session is not None:
        coordinator.sessions.end(session)
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
