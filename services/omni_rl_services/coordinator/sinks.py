"""The interface to metric systems. A sink only listens: whatever it does, no step waits for it and no run stops."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from omni_rl.api.incidents import IncidentAnswer
from omni_rl.consistency.limits import Figures, Limits, Severity

logger = logging.getLogger("omni_rl.coordinator")
BACKLOG = 1024
"""The most calls that a slow sink may be behind; further ones are dropped for it."""
CLOSE_SECONDS = 5.0
"""Seconds that a sink may take to finish at the end."""
Training = Mapping[str, float | None]
"""The trainer's own figures by name; None where one is not a number."""


@dataclass(frozen=True)
class AttemptStart:
    """One attempt of a run. `created` is when the ledger first heard of the run, in Unix seconds; a run of that name in
    another ledger is another run."""

    run: str
    attempt: int
    created: float


@dataclass(frozen=True)
class SinkStep:
    """What a sink gets of a sealed step: where the run stands after it, its figures, the limits that these were
    compared with, and when it was `sealed`, in Unix seconds."""

    of: AttemptStart
    step: int
    severity: Severity
    figures: Figures
    training: Training
    sealed: float
    limits: Limits


class Sink(Protocol):
    """Takes what happens, in order, in a thread of its own."""

    def step(self, step: SinkStep) -> None:
        """Take a step that was judged."""

    def learnt(self, of: AttemptStart, step: int, training: Training) -> None:
        """Take the trainer's figures of a step that was judged before."""

    def incident(self, of: AttemptStart, incident: IncidentAnswer) -> None:
        """Take an incident of a run that was opened or has ended."""

    def close(self) -> None:
        """Finish: nothing more comes."""


class Aside:
    """Runs a sink in a thread, with a bounded queue; its failures are logged and reach nobody else. `dropped` counts
    the calls that the sink missed."""

    def __init__(self, sink: Sink, name: str) -> None:
        self._sink = sink
        self.name = name
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(BACKLOG)
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def step(self, step: SinkStep) -> None:
        self._put(lambda: self._sink.step(step))

    def learnt(self, of: AttemptStart, step: int, training: Training) -> None:
        self._put(lambda: self._sink.learnt(of, step, training))

    def incident(self, of: AttemptStart, incident: IncidentAnswer) -> None:
        self._put(lambda: self._sink.incident(of, incident))

    def count(self) -> int:
        """Return how many calls the sink missed so far."""
        return self.dropped

    def close(self) -> None:
        """Let the sink finish what it has; one that hangs is left behind."""
        try:
            self._calls.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(CLOSE_SECONDS)

    def _put(self, call: Callable[[], None]) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._drop("it is too slow")

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # a sink is somebody else's code, and must not stop a run
                self._drop(f"{type(error).__name__}: {error}")
        try:
            self._sink.close()
        except Exception as error:
            logger.warning("sink %s did not close: %s", self.name, error)

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # 1, 2, 4, 8: a sink that stays down does not fill the log
            logger.warning("sink %s missed %d calls so far: %s", self.name, self.dropped, why)
