"""Finds out whether an actor's process executes anything, and tells a busy process, a stopped one and a dead one
apart."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from omni_rl.processes import SILENT_AFTER, STOPPED_AFTER, StopClock, life

PING_EVERY = 1.0
"""The seconds between two pings of a process."""
FROZEN = "is stopped (SIGSTOP or frozen), not dead"


class Presence:
    """What is seen of one actor's process, look after look. Only one thread at a time may look.

    The kernel reports on a process `pid` of this machine. One of another machine (None) is pinged: `ping` returns the
    reference to its answer, and must be answered by a thread of its own, which a busy process still has.
    """

    def __init__(
        self,
        pid: int | None,
        ping: Callable[[], Any],
        heard: Callable[[Any], None] | None = None,
        silent_after: float = SILENT_AFTER,
    ) -> None:
        """Watch a process. `heard` gets the answer to each ping; where it is given, a process of this machine is pinged
        too."""
        self._pid = pid
        self._clock = None if pid is None else StopClock(pid)
        self._ping = ping
        self._heard = heard
        self._silent_after = silent_after
        self._asked: Any = None
        self._asked_at = -PING_EVERY
        self._ended = False

    @property
    def gone(self) -> bool:
        """Whether the process has ended; one of another machine as of the last look."""
        return self._ended if self._pid is None else life(self._pid) == "gone"

    @property
    def seen_stopped(self) -> float | None:
        """For how many seconds the kernel has called the process stopped; None if it is not, or is on another
        machine."""
        return None if self._clock is None else self._clock.seconds()

    def look(self, *, ping: bool = True) -> str:
        """Return why the process counts as stopped; empty while it runs. Does not wait, and raises what `heard` raises.
        Without `ping` only the kernel is asked."""
        now = time.monotonic()
        if ping and (self._pid is None or self._heard is not None):
            self._pulse(now)
        if self._pid is not None:
            return FROZEN if (self.seen_stopped or 0.0) >= STOPPED_AFTER else ""
        if not ping:
            return ""
        silent = now - self._asked_at
        if self._asked is None or silent < self._silent_after:
            return ""
        return f"has answered no ping for {silent:.0f} s, while Ray does not report it dead: it is stopped, or cut off"

    def _pulse(self, now: float) -> None:
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            answer, self._asked = self._asked, None
            self._hear(answer)
        if self._asked is None and now - self._asked_at >= PING_EVERY:
            self._asked_at = now
            with contextlib.suppress(RayError):  # of this process's own Ray, which says nothing of the other
                self._asked = self._ping()

    def _hear(self, answer: Any) -> None:
        try:
            told = ray.get(answer)
        except RayActorError:
            self._ended = True
        except RayTaskError:
            raise  # what the method that answers pings raised
        except RayError:
            pass  # Ray lost the answer, which says nothing of the process; the next ping does
        else:
            if self._heard is not None:
                self._heard(told)
