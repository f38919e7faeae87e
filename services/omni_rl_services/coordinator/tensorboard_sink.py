"""TensorBoard: event files, a directory for each attempt of a run; the files of a restarted coordinator, or of an
attempt that is opened again, lie beside the earlier ones."""

import importlib
import math
import uuid
from typing import Any

from omni_rl.api.incidents import IncidentAnswer
from omni_rl_services.coordinator.open_attempts import OpenAttempts
from omni_rl_services.coordinator.settings import TensorboardSettings
from omni_rl_services.coordinator.sinks import AttemptStart, SinkStep, Training


class TensorboardSink:
    """Writes with tensorboardX, which needs neither TensorFlow nor torch; it is imported when the first step comes."""

    def __init__(self, settings: TensorboardSettings) -> None:
        self._settings = settings
        self._writers: OpenAttempts[Any] = OpenAttempts(self._opened, lambda writer: writer.close())

    def step(self, step: SinkStep) -> None:
        writer = self._writers.one(step.of)
        for kind, figures in step.figures.items():
            for name, value in figures.items():
                writer.add_scalar(f"{kind}/{name}", value, step.step, step.sealed)
        writer.add_scalar("severity", int(step.severity), step.step, step.sealed)
        self.learnt(step.of, step.step, step.training)

    def learnt(self, of: AttemptStart, step: int, training: Training) -> None:
        writer = self._writers.one(of)
        for name, value in training.items():
            writer.add_scalar(f"train/{name}", math.nan if value is None else value, step)
        writer.flush()

    def incident(self, of: AttemptStart, incident: IncidentAnswer) -> None:
        told = f"{incident.what}\n\n**What to do:** {incident.remedy}" if incident.ended is None else "It is over."
        writer = self._writers.one(of)
        writer.add_text(f"incident {incident.incident}", told, incident.step or 0)
        writer.flush()

    def close(self) -> None:
        self._writers.close()

    def _opened(self, of: AttemptStart) -> Any:
        package: Any = importlib.import_module("tensorboardX")
        directory = self._settings.directory / of.run / f"attempt-{of.attempt}"
        # The package names a file by the second, and would write over one that was closed just before.
        return package.SummaryWriter(str(directory), filename_suffix=f".{uuid.uuid4().hex[:8]}")
