"""Waits for an actor's answer, and tells a dead actor, a stopped one and a slow one apart."""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from omni_rl.errors import ReplicaDeadError, ReplicaSilentError, ReplicaStoppedError
from omni_rl.processes import SILENT_AFTER
from omni_rl.sync.presence import FROZEN, Presence
from omni_rl.sync.replica import Deadline

LOOK_EVERY = 0.5
"""The seconds between two looks at the process while its answer is awaited."""
ENDING = "the next sync replaces it, dead or stopped"
HEARTBEAT = 5.0
"""The seconds for an actor on another machine to answer a ping, which it does in the middle of any work."""
FOUND = 30.0
"""The seconds for an actor that was found by its name to answer. An actor that loads libraries, or whose machine is
busy, answers late; and one that does not answer is taken for dead and replaced, a trainer with all that it learnt."""


class Waiter:
    """Waits for answers of one actor, whose process is `pid` of this machine, or is on another one (None).

    A stopped process is reported after `STOPPED_AFTER` + `LOOK_EVERY` seconds on this machine, whatever the command's
    own deadline is; on another after the deadline + `HEARTBEAT` seconds, or `silent_after` where there is none.
    """

    def __init__(
        self,
        actor: Any,
        name: str,
        pid: int | None,
        ping: Callable[[], Any] | None = None,
        heard: Callable[[Any], None] | None = None,
        ending: str = ENDING,
        silent_after: float = SILENT_AFTER,
    ) -> None:
        """Make a waiter. `ending` says what it means to end the process, for the message if it is stopped.

        `heard` gets the answer to each ping of a wait without a deadline, and ends the wait if it raises; `ping` sends
        one, by default to the actor's `alive`.
        """
        self._actor = actor
        self._name = name
        self._pid = pid
        self._ending = ending
        self._presence = Presence(pid, ping or (lambda: actor.alive.remote()), heard, silent_after)

    def get(self, reference: Any, what: str, deadline: Deadline | None) -> Any:
        """Return the answer.

        Raises:
            ReplicaDeadError: the process is gone.
            ReplicaStoppedError: it exists, but executes nothing.
            ReplicaSilentError: it runs, and `deadline` has passed.
            Whatever the actor's method raised.
        """
        end = None if deadline is None else time.monotonic() + deadline.seconds
        while True:
            slice_s = LOOK_EVERY if end is None else min(LOOK_EVERY, max(0.0, end - time.monotonic()))
            if ray.wait([reference], timeout=slice_s)[0]:
                return self._answer(reference, what)
            why = self._presence.look(ping=deadline is None)
            if why:
                raise self._stopped(why, what)
            if end is not None and deadline is not None and time.monotonic() >= end:
                self._miss(what, deadline)

    def _stopped(self, why: str, what: str) -> ReplicaStoppedError:
        who, wake = ("", "") if self._pid is None else (f" process {self._pid}", f" (kill -CONT {self._pid})")
        return ReplicaStoppedError(
            f"{self._name}:{who} {why}, and did not answer {what}; wake it up{wake}, or end it: {self._ending}"
        )

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
        """Say what is known of the process after the deadline has passed."""
        if self._presence.seen_stopped is not None:
            raise self._stopped(FROZEN, what)
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
