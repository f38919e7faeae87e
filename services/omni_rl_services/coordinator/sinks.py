"""The seam to metric systems. A sink only listens: whatever it does, no step waits for it and no run stops."""

import importlib
import logging
import math
import queue
import threading
from dataclasses import dataclass
from typing import Any, Protocol

from omni_rl.consistency.limits import Figures, Severity
from omni_rl_services.coordinator.settings import WandbSettings

logger = logging.getLogger("omni_rl.coordinator")
BACKLOG = 1024
"""Steps that a slow sink may be behind; then they are dropped for it."""
CLOSE_SECONDS = 5.0
"""How long a sink may take to finish at the end."""


@dataclass(frozen=True)
class JudgedStep:
    """What sinks are told of a sealed step."""

    run: str
    attempt: int
    step: int
    severity: Severity
    figures: Figures
    training: dict[str, float | None]


class Sink(Protocol):
    """Takes steps, in order, in a thread of its own."""

    def step(self, step: JudgedStep) -> None: ...
    def close(self) -> None: ...


class Aside:
    """Runs a sink beside the coordinator: bounded, and deaf to its failures. `dropped` counts the steps it missed."""

    def __init__(self, sink: Sink, name: str) -> None:
        self._sink = sink
        self.name = name
        self._steps: queue.Queue[JudgedStep | None] = queue.Queue(BACKLOG)
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def step(self, step: JudgedStep) -> None:
        try:
            self._steps.put_nowait(step)
        except queue.Full:
            self._drop("it is too slow")

    def count(self) -> int:
        """Steps it missed so far."""
        return self.dropped

    def close(self) -> None:
        """Let it finish what it has; one that hangs is left behind."""
        try:
            self._steps.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                self._sink.step(step)
            except Exception as error:  # a sink is somebody else's code, and must not stop a run
                self._drop(f"{type(error).__name__}: {error}")
        try:
            self._sink.close()
        except Exception as error:
            logger.warning("sink %s did not close: %s", self.name, error)

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # 1, 2, 4, 8: a sink that stays down does not fill the log
            logger.warning("sink %s missed %d steps so far: %s", self.name, self.dropped, why)


class WandbSink:
    """One Weights & Biases run for each attempt. The package is imported when the first step comes."""

    def __init__(self, settings: WandbSettings) -> None:
        self._settings = settings
        self._runs: dict[tuple[str, int], Any] = {}

    def step(self, step: JudgedStep) -> None:
        wandb: Any = importlib.import_module("wandb")
        key = step.run, step.attempt
        if key not in self._runs:
            self._runs[key] = wandb.init(
                project=self._settings.project,
                entity=self._settings.entity,
                name=f"{step.run}-{step.attempt}",
                group=step.run,
                reinit="create_new",
            )
        values = {
            f"{bucket}/{name}": value for bucket, metrics in step.figures.items() for name, value in metrics.items()
        }
        values |= {f"train/{name}": math.nan if value is None else value for name, value in step.training.items()}
        self._runs[key].log({**values, "severity": int(step.severity)}, step=step.step)

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()
