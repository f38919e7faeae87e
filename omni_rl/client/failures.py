"""From a problem document back to the error class that made it."""

import json

import httpx

from omni_rl.errors import AddressError, ApiError, OmniRLError, error_class

BETWEEN = frozenset({408, 429, 500, 502, 503, 504})
"""What a proxy says of a coordinator that is away, slow or broken. With any other status and no problem document, what
answers is another server."""


def raise_for_problem(response: httpx.Response) -> None:
    """Raise what the coordinator raised: the class whose `code` the problem carries, with its message.

    The body must have been read. Raises `ApiError` for a code of a newer version and for what a proxy says of a
    coordinator, and `AddressError` for the answer of another server.
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
        raise AddressError(f"{said}: {another(response)}") from None
    known = error_class(code)
    if known is not OmniRLError:
        raise known(detail)
    raise ApiError(f"{where}: status {response.status_code}, {code}: {detail}")


def another(response: httpx.Response) -> str:
    """What is to be seen to where another server answers."""
    elsewhere = response.headers.get("location")
    sent = f", which sends to {elsewhere}" if elsewhere else ""
    return f"another server answers at {response.request.url.host}{sent}; is OMNI_RL_URL right?"
