"""Records what `/readyz` says during a soak, look after look."""

import time
from dataclasses import dataclass, field

from omni_rl.client.retries import ONCE
from omni_rl.errors import OmniRLError
from omni_rl_bench.soak.load import Load, until

LOOK_SECONDS = 0.2
ANSWER_SECONDS = 2.0
"""The seconds for an answer; none counts as an answer that the service is not ready."""


@dataclass(frozen=True)
class Look:
    """An answer of `/readyz` at `at`, by the monotonic clock; it has a `reason` where the service is not ready."""

    at: float
    ready: bool
    reason: str = ""


@dataclass
class Readiness:
    """All looks of a soak, in their order."""

    looks: list[Look] = field(default_factory=list)

    def follow(self, load: Load) -> None:
        """Look until the load has ended."""
        with load.service.client(ONCE, ANSWER_SECONDS) as client:
            for _ in until(load.callers.ended, LOOK_SECONDS):
                asked = time.monotonic()
                try:
                    answer = client.ready()
                except OmniRLError as error:
                    self.looks.append(Look(asked, False, str(error)))
                else:
                    self.looks.append(Look(asked, answer.ready, answer.reason))

    def first_unready(self, begin: float, end: float) -> Look | None:
        """Return the first look between two times that found the service not ready."""
        return next((look for look in list(self.looks) if begin <= look.at <= end and not look.ready), None)

    def only_ready(self, begin: float, end: float) -> bool:
        """Return whether there were looks between two times, and each found the service ready."""
        found = [look.ready for look in list(self.looks) if begin <= look.at <= end]
        return bool(found) and all(found)
