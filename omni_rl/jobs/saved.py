"""Keeps what a run needs to be resumed: its parameters, and the trainer's state after some of its steps."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from omni_rl.api.jobs import PolicyGradientParameters
from omni_rl.errors import ConfigError

DIRECTORY = "OMNI_RL_JOBS"
"""The environment variable that names the directory of all runs, on the host of the trainer's first rank."""
STEP = "step-"
PARAMETERS = "parameters.json"
KEPT = 2
"""The number of saved states that are kept; older ones are deleted."""
FREE = {"steps", "resume", "evaluate_every", "save_every"}
"""The parameters that a resumed job may change, because no step depends on them. `steps` is not free where the learning
rate falls over all steps."""


class SavedSteps:
    """The saved states of one run. A state is complete or absent, because the trainer renames it into place."""

    def __init__(self, run: str, directory: Path | None = None) -> None:
        self._directory = (directory or Path(os.environ.get(DIRECTORY, "runs/jobs"))).resolve() / run

    def begin(self, kind: str, parameters: PolicyGradientParameters) -> None:
        """Begin a new run by writing down its parameters. Raises ConfigError if a run of that name has saved steps."""
        if self._steps():
            raise ConfigError(
                f"run {parameters.run} has saved steps in {self._directory}: choose another name, or resume it"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / PARAMETERS).write_text(json.dumps(_fixed(kind, parameters)))

    def resume(self, kind: str, parameters: PolicyGradientParameters) -> tuple[int, Path]:
        """Return the step to go on with, and the path of the state with which it begins.

        Raises:
            ConfigError: nothing was saved, or the run had other parameters, which the message names.
        """
        steps = self._steps()
        if not steps:
            raise ConfigError(
                f"run {parameters.run} has no saved step in {self._directory}: it ended before its first, or "
                "save_every was 0; start it under another name, without resume"
            )
        before: dict[str, Any] = json.loads((self._directory / PARAMETERS).read_text())
        before.setdefault("steps", parameters.steps)  # runs of earlier versions did not write it down
        now = _fixed(kind, parameters)
        changed = [
            f"{name} {before.get(name)!r} (now {now.get(name)!r})" for name in now if before.get(name) != now[name]
        ]
        if changed:
            raise ConfigError(f"run {parameters.run} began with {', '.join(changed)}; resume it with the same")
        return steps[-1], self.path(steps[-1])

    def path(self, following: int) -> Path:
        """Return the path of the state with which step `following` begins."""
        return self._directory / f"{STEP}{following:08d}"

    def tidy(self) -> None:
        """Delete all saved states but the latest `KEPT`."""
        for step in self._steps()[:-KEPT]:
            shutil.rmtree(self.path(step))

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix(STEP)) for path in self._directory.glob(f"{STEP}*"))


def _fixed(kind: str, parameters: PolicyGradientParameters) -> dict[str, Any]:
    free = FREE - {"steps"} if parameters.learning_rate_decay else FREE
    return {"kind": kind, **parameters.model_dump(mode="json", exclude=free)}
