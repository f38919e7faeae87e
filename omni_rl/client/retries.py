"""When a request is sent again, and after how long."""

import random
from dataclasses import dataclass

import httpx

from omni_rl.client.calls import Call
from omni_rl.errors import CoordinatorUnreachableError

AGAIN = frozenset({429, 502, 504})
"""Too much at once, and a proxy whose coordinator is just restarting. 503 is an answer: Ray is away, and says so."""


@dataclass(frozen=True)
class Retries:
    """`attempts` in all; waits double from `first` to `longest` seconds, and vary by half so that ranks do not come
    back together."""

    attempts: int = 6
    first: float = 0.2
    longest: float = 5.0

    def wait(self, attempt: int, asked: str | None = None) -> float:
        """Seconds before attempt number `attempt` (from 1); a server's Retry-After counts where it is longer."""
        wait: float = min(self.longest, self.first * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
        return max(wait, min(float(asked), self.longest)) if asked is not None and asked.isdecimal() else wait


def after_failure(call: Call[object], error: httpx.TransportError, attempt: int, retries: Retries) -> float:
    """Seconds to wait before the next attempt.

    Raises:
        CoordinatorUnreachableError: there is none: the last failed, or the request may have been carried out and must
            not be sent twice.
    """
    unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    if attempt >= retries.attempts or not (unsent or call.repeatable):
        what = str(error) or type(error).__name__
        raise CoordinatorUnreachableError(
            f"{call.method} {call.path}: no answer ({what}{_hint(error, what)})"
        ) from error
    return retries.wait(attempt)


def after_answer(response: httpx.Response, attempt: int, retries: Retries) -> float | None:
    """Seconds to wait before the next attempt; None: the answer stands."""
    if response.status_code not in AGAIN or attempt >= retries.attempts:
        return None
    return retries.wait(attempt, response.headers.get("retry-after"))


def _hint(error: httpx.TransportError, what: str) -> str:
    """What to try, for the two failures whose own words do not say it."""
    if "CERTIFICATE_VERIFY_FAILED" in what:
        return "; OMNI_RL_CA_FILE names the certificates that vouch for it"
    if isinstance(error, httpx.RemoteProtocolError):
        return "; does it speak https?"
    return ""
