"""What a run leaves behind to go on from: its parameters, and the trainer's state after some of its steps."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from omni_rl.api.jobs import PolicyGradientParameters
from omni_rl.errors import ConfigError

DIRECTORY = "OMNI_RL_JOBS"
"""The variable that names the directory of all runs; it is on the host of the trainer's first rank."""
STEP = "step-"
PARAMETERS = "parameters.json"
KEPT = 2
"""Saved states; older ones are deleted."""
FREE = {"steps", "resume", "evaluate_every", "save_every"}
"""Parameters that a resumed job may have otherwise: they change no step."""


class SavedSteps:
    """Of one run. A state is there whole or not at all: the trainer renames it into place."""

    def __init__(self, run: str, directory: Path | None = None) -> None:
        self._directory = (directory or Path(os.environ.get(DIRECTORY, "runs/jobs"))).resolve() / run

    def begin(self, kind: str, parameters: PolicyGradientParameters) -> None:
        """A new run. Raises ConfigError if there are saved steps of one of that name."""
        if self._steps():
            raise ConfigError(
                f"run {parameters.run} has saved steps in {self._directory}: choose another name, or resume it"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / PARAMETERS).write_text(json.dumps(_fixed(kind, parameters)))

    def resume(self, kind: str, parameters: PolicyGradientParameters) -> tuple[int, Path]:
        """The step to go on with, and the state to begin it with.

        Raises:
            ConfigError: nothing was saved, or the run had other parameters, which are named.
        """
        steps = self._steps()
        if not steps:
            raise ConfigError(f"run {parameters.run} has no saved step in {self._directory}; start it without resume")
        before: dict[str, Any] = json.loads((self._directory / PARAMETERS).read_text())
        now = _fixed(kind, parameters)
        changed = [
            f"{name} {before.get(name)!r} (now {now.get(name)!r})" for name in now if before.get(name) != now[name]
        ]
        if changed:
            raise ConfigError(f"run {parameters.run} began with {', '.join(changed)}; resume it with the same")
        return steps[-1], self.path(steps[-1])

    def path(self, following: int) -> Path:
        """Of the state with which step `following` begins."""
        return self._directory / f"{STEP}{following:08d}"

    def tidy(self) -> None:
        """Delete all but the latest."""
        for step in self._steps()[:-KEPT]:
            shutil.rmtree(self.path(step))

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix(STEP)) for path in self._directory.glob(f"{STEP}*"))


def _fixed(kind: str, parameters: PolicyGradientParameters) -> dict[str, Any]:
    return {"kind": kind, **parameters.model_dump(mode="json", exclude=FREE)}
