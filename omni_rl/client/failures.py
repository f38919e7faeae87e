"""Turns a problem document back into the error class that made it."""

import json

import httpx
from pydantic import ValidationError

from omni_rl import __version__
from omni_rl.errors import (
    AddressError,
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    OmniRLError,
    TooLargeError,
    UnauthenticatedError,
    error_class,
)

OF_STATUS: dict[int, type[OmniRLError]] = {
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    422: InvalidRequestError,
}
"""The class for an error of a newer version that this version does not know, where the status says as much."""
BETWEEN = frozenset({408, 429, 500, 502, 503, 504})
"""The statuses by which a proxy says that a coordinator is away, slow or broken. 413 says that it takes no request of
this size. With any other status and no problem document, what answers is another server."""


def raise_for_problem(response: httpx.Response) -> None:
    """Raise what the coordinator raised: the class whose `code` the problem carries, with its message.

    The body must have been read. A code of a newer version becomes the class of its status, or `ApiError`, which also
    stands for what a proxy says of a coordinator; the answer of another server becomes `AddressError`.
    """
    if response.is_success:
        return
    where = f"{response.request.method} {response.request.url.path}"
    try:
        problem = json.loads(response.content)
        code, detail = problem["code"], problem["detail"]
    except (ValueError, KeyError, TypeError):
        said = f"{where}: status {response.status_code} without a problem document"
        if response.status_code in BETWEEN:
            raise ApiError(said) from None
        if response.status_code == 413:
            raise TooLargeError(f"{said}: a proxy before the coordinator takes less; raise its limit") from None
        raise another(response, said) from None
    known = error_class(code)
    if known is not OmniRLError:
        raise known(detail)
    said = f"{where}: status {response.status_code}, {code}: {detail}"
    raise OF_STATUS.get(response.status_code, ApiError)(said)


def unreadable(response: httpx.Response, error: ValidationError) -> ApiError | AddressError:
    """Return the error for an answer that is not as the coordinator of this version answers."""
    where = f"{response.request.method} {response.request.url.path}"
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if found["type"] == "json_invalid":
        return another(response, f"{where}: the answer is not JSON")
    place = ".".join(map(str, found["loc"]))
    return ApiError(
        f"{where}: omni-rl {__version__} cannot read the answer, at {place}: {found['msg']}; install the coordinator's "
        "version"
    )


def another(response: httpx.Response, said: str) -> AddressError:
    """Return the error for an address at which another server answers."""
    elsewhere = response.headers.get("location")
    sent = f", which sends to {elsewhere}" if elsewhere else ""
    return AddressError(f"{said}: another server answers at {response.request.url.host}{sent}; is OMNI_RL_URL right?")
