"""Waiting for an actor's answer without being fooled: a dead actor, a stopped one and a slow one are told apart."""

import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from omni_rl.errors import ReplicaDeadError, ReplicaSilentError, ReplicaStoppedError
from omni_rl.processes import life
from omni_rl.sync.replica import Deadline

LOOK_EVERY = 0.5
"""Seconds between two looks at the process while its answer is awaited."""
STOPPED_AFTER = 2.0
"""Seconds for which a process must be seen stopped. A debugger or a container's freezer stops one for moments."""
HEARTBEAT = 5.0
"""Seconds for an actor on another machine to answer a ping, which it does in the middle of any work."""
FOUND = 30.0
"""Seconds for an actor that was found by its name to answer. Where it loads libraries, or the machine is busy, it comes
to that late; and whoever does not answer is taken for dead and replaced, a trainer with all that it learnt."""


class Waiter:
    """Waits for answers of one actor, whose process is `pid` of this machine, or on another one (None).

    A stopped process is reported after `STOPPED_AFTER` + `LOOK_EVERY` seconds on this machine, and after the deadline
    + `HEARTBEAT` seconds on another, whatever the command's own deadline is.
    """

    def __init__(self, actor: Any, name: str, pid: int | None) -> None:
        self._actor = actor
        self._name = name
        self._pid = pid

    def get(self, reference: Any, what: str, deadline: Deadline | None) -> Any:
        """The answer.

        Raises:
            ReplicaDeadError: the process is gone.
            ReplicaStoppedError: it exists, but executes nothing.
            ReplicaSilentError: it runs, and `deadline` has passed.
            Whatever the actor's method raised.
        """
        end = None if deadline is None else time.monotonic() + deadline.seconds
        stopped_since: float | None = None
        while True:
            now = time.monotonic()
            slice_end = now + LOOK_EVERY if end is None else min(now + LOOK_EVERY, end)
            ready, _ = ray.wait([reference], timeout=max(0.0, slice_end - now))
            if ready:
                return self._answer(reference, what)
            now = time.monotonic()
            if self._pid is not None and life(self._pid) == "stopped":
                stopped_since = stopped_since or now
                if now - stopped_since >= STOPPED_AFTER or (end is not None and now >= end):
                    raise ReplicaStoppedError(
                        f"{self._name}: process {self._pid} is stopped (SIGSTOP or frozen), not dead, and did not "
                        f"answer {what}; wake it up or replace it"
                    )
            else:
                stopped_since = None
            if end is not None and deadline is not None and now >= end:
                self._miss(what, deadline)

    def _answer(self, reference: Any, what: str) -> Any:
        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            raise ReplicaDeadError(f"{self._name}: its process ended during {what}; replace it") from error
        except RayError as error:
            raise ReplicaDeadError(f"{self._name}: Ray lost the answer to {what}: {error}; replace it") from error

    def _miss(self, what: str, deadline: Deadline) -> None:
        """The deadline has passed: say what is known of the process."""
        missed = f"{self._name}: no answer to {what} within its deadline {deadline.name!r} of {deadline.seconds:g} s"
        try:
            ray.get(self._actor.alive.remote(), timeout=HEARTBEAT)
        except GetTimeoutError:
            raise ReplicaStoppedError(
                f"{missed}, nor to a ping within {HEARTBEAT:g} s, while Ray does not report it dead: it is stopped, or "
                "cut off"
            ) from None
        except RayError as error:
            raise ReplicaDeadError(f"{self._name}: its process ended during {what}; replace it") from error
        raise ReplicaSilentError(f"{missed}; it runs and answers pings")
