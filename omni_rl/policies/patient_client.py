"""A job's client of the coordinator, whose calls outlive what `retried` waits for."""

from typing import TypeVar

from omni_rl.client.blocking import Client
from omni_rl.client.call import Call
from omni_rl.client.retries import Retries
from omni_rl.policies.retries import retried

T = TypeVar("T")
UNANSWERED = Retries(attempts=40)
"""A job outlives the coordinator's restart: up to three minutes without an answer."""


class PatientClient(Client):
    """A client that repeats each call for as long as `retried` does. Only calls of which a second one changes nothing
    more may be made with it, as are all that a job makes: a part that is posted again is the same part, and a sync that
    is asked for again has its key."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        super().__init__(url, token, retries=UNANSWERED)

    def _send(self, call: Call[T]) -> T:
        return retried(lambda: super(PatientClient, self)._send(call))
