"""A call is repeated for as long as its error has come, whatever came before."""

import pytest

from omni_rl.errors import RayUnavailableError, SyncRunningError
from omni_rl.policies import retries
from omni_rl.policies.retries import WAITS, retried


class Clock:
    """The time, which only a call and a wait let pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self.passes)

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_how_long_the_call_itself_took_does_not_count(clock: Clock) -> None:
    errors = [RayUnavailableError("the bridge died in the middle")]

    def call() -> str:
        clock.passes(2 * WAITS[RayUnavailableError])
        if errors:
            raise errors.pop()
        return "done"

    assert retried(call) == "done"


def test_another_error_has_seconds_of_its_own(clock: Clock) -> None:
    def call() -> str:
        if clock.now < 1.5 * WAITS[RayUnavailableError]:
            raise SyncRunningError("another's")
        if clock.now < 2 * WAITS[RayUnavailableError]:
            raise RayUnavailableError("the bridge is starting")
        return "done"

    assert retried(call) == "done"


def test_an_error_that_stays_is_raised_after_its_seconds(clock: Clock) -> None:
    def call() -> None:
        raise RayUnavailableError("gone for ever")

    with pytest.raises(RayUnavailableError):
        retried(call)
    assert WAITS[RayUnavailableError] <= clock.now <= WAITS[RayUnavailableError] + 2 * retries.LOOK_SECONDS
