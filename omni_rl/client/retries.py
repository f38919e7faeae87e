"""Decides when a request is sent again, and after how long."""

import random
from dataclasses import dataclass

import httpx

from omni_rl.client.call import Call
from omni_rl.client.mistakes import mistake
from omni_rl.errors import CoordinatorUnreachableError, SchemeError

AGAIN = frozenset({429, 502, 504})
"""The statuses after which a request is sent again: too many requests, and a proxy whose coordinator is just
restarting. 503 is an answer of the coordinator: Ray is away."""
NOT_DONE = frozenset({429})
"""The statuses of `AGAIN` after which the request was surely not carried out. Where a proxy answers 502 or 504, it may
have been: only the answer was lost."""


@dataclass(frozen=True)
class Retries:
    """How often a request is sent. There are `attempts` in all; waits double from `first` to `longest` seconds, and
    vary by half so that ranks do not come back together."""

    attempts: int = 6
    first: float = 0.2
    longest: float = 5.0

    def wait(self, attempt: int, asked: str | None = None) -> float:
        """Return the seconds before attempt number `attempt` (from 1); a server's Retry-After counts where it is
        longer."""
        wait: float = min(self.longest, self.first * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
        return max(wait, min(float(asked), self.longest)) if asked is not None and asked.isdecimal() else wait


ONCE = Retries(attempts=1)
"""The retries of callers that have a pace of their own."""


def after_failure(call: Call[object], error: httpx.TransportError, attempt: int, retries: Retries) -> float:
    """Return the seconds to wait before the next attempt.

    Raises:
        CoordinatorUnreachableError: There is no next attempt: the last failed, the request may have been carried out
            and must not be sent twice, or the address is wrong.
    """
    unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    kind, hint = mistake(error) or (CoordinatorUnreachableError, "")
    # Each request in the wrong scheme is a line in that server's log, and none can ever be answered.
    if kind is not SchemeError and attempt < retries.attempts and (unsent or call.repeatable):
        return retries.wait(attempt)
    raise kind(f"{call.method} {call.path}: no answer ({str(error) or type(error).__name__}{hint})") from error


def after_answer(call: Call[object], response: httpx.Response, attempt: int, retries: Retries) -> float | None:
    """Return the seconds to wait before the next attempt; None: the answer stands."""
    again = AGAIN if call.repeatable else NOT_DONE
    if response.status_code not in again or attempt >= retries.attempts:
        return None
    return retries.wait(attempt, response.headers.get("retry-after"))
