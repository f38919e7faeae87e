"""From a problem document back to the error class that made it."""

import json

import httpx

from omni_rl.errors import ApiError, OmniRLError, error_class


def raise_for_problem(response: httpx.Response) -> None:
    """Raise what the coordinator raised: the class whose `code` the problem carries, with its message.

    The body must have been read. Raises `ApiError` for what is no problem document, or has a code of a newer version.
    """
    if response.is_success:
        return
    where = f"{response.request.method} {response.request.url.path}"
    try:
        problem = json.loads(response.content)
        code, detail = problem["code"], problem["detail"]
    except (ValueError, KeyError, TypeError):
        raise ApiError(f"{where}: status {response.status_code} without a problem document") from None
    known = error_class(code)
    if known is not OmniRLError:
        raise known(detail)
    raise ApiError(f"{where}: status {response.status_code}, {code}: {detail}")
