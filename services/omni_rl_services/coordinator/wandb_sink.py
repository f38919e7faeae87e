"""Weights & Biases: one run there for each attempt of a run here, the same one after the coordinator was restarted."""

import hashlib
import importlib
import math
from typing import Any

from omni_rl.api.incidents import IncidentAnswer
from omni_rl_services.coordinator.open_attempts import OpenAttempts
from omni_rl_services.coordinator.settings import WandbSettings
from omni_rl_services.coordinator.sinks import AttemptStart, SinkStep, Training

STEP = "step"
"""The axis of every figure. W&B's own step only rises, and drops what comes later: a trainer's figures come after the
step that they are of."""
LEVELS = {"pause": "ERROR", "mask": "WARN"}


class WandbSink:
    """Sends figures and alerts to Weights & Biases; the package is imported when the first step comes."""

    def __init__(self, settings: WandbSettings) -> None:
        self._settings = settings
        self._runs: OpenAttempts[Any] = OpenAttempts(self._opened, lambda run: run.finish())

    def step(self, step: SinkStep) -> None:
        figures = {f"{kind}/{name}": value for kind, found in step.figures.items() for name, value in found.items()}
        self._log(step.of, step.step, {**figures, **_named(step.training), "severity": int(step.severity)})

    def learnt(self, of: AttemptStart, step: int, training: Training) -> None:
        self._log(of, step, _named(training))

    def incident(self, of: AttemptStart, incident: IncidentAnswer) -> None:
        run = self._runs.one(of)
        run.summary["incidents"] = incident.incident if incident.ended is None else 0
        if incident.ended is None:
            run.alert(
                title=f"{of.run}: {incident.cause or incident.kind}",
                text=f"{incident.what}\nWhat to do: {incident.remedy}\n{incident.guide}",
                level=LEVELS.get(incident.severity, "INFO"),
            )

    def close(self) -> None:
        self._runs.close()

    def _log(self, of: AttemptStart, step: int, values: dict[str, float]) -> None:
        self._runs.one(of).log({**values, STEP: step})

    def _opened(self, of: AttemptStart) -> Any:
        wandb: Any = importlib.import_module("wandb")
        run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity,
            id=identity(of),
            resume="allow",
            name=f"{of.run}-{of.attempt}",
            group=of.run,
            reinit="create_new",
        )
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        return run


def identity(of: AttemptStart) -> str:
    """Return an id that is the same for the same attempt of the same run, whichever process asks; a project keeps it
    for ever."""
    return hashlib.sha256(f"{of.run}/{of.attempt}/{of.created!r}".encode()).hexdigest()[:16]


def _named(training: Training) -> dict[str, float]:
    return {f"train/{name}": math.nan if value is None else value for name, value in training.items()}
