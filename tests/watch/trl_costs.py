"""What watching costs a real TRL run: processor time of the thread that trains, apart from what TRL itself does in it.

    python -m tests.watch.trl_costs URL

trains a random Qwen2 in TRL's environment, posts to the coordinator at URL, and prints a JSON list: of each step the
milliseconds that watching took of its thread, and the seconds from its begin to the next one's.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omni_rl.watch import trl, trl_engine

STEPS = 12


class Costs:
    """Adds up the time in the methods that the hook puts in the place of TRL's, less that in TRL's own below them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._own = 0.0
        self._began = 0.0

    def install(self) -> None:
        """Measure every method that is wrapped from now on."""
        modules: tuple[Any, ...] = (trl, trl_engine)
        for module in modules:
            module.wrap = self._measuring(module.wrap)

    def write(self, path: Path) -> None:
        self._end_step()
        path.write_text(json.dumps(self.steps))

    def _measuring(self, wrap: Callable[..., None]) -> Callable[..., None]:
        def measured_wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
            def measured(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                if name == "_generate_and_score_completions":
                    self._end_step()
                below = 0.0

                def timed(*args: Any, **kwargs: Any) -> Any:
                    nonlocal below
                    began = time.thread_time()
                    try:
                        return inner(*args, **kwargs)
                    finally:
                        below += time.thread_time() - began

                began = time.thread_time()
                try:
                    return around(timed, *args, **kwargs)
                finally:
                    self._own += time.thread_time() - began - below

            wrap(owner, name, measured)

        return measured_wrap

    def _end_step(self) -> None:
        now = time.perf_counter()
        if self._began:
            self.steps.append({"milliseconds": 1e3 * self._own, "seconds": now - self._began})
        self._own, self._began = 0.0, now


def main() -> None:
    from omni_rl import torchvision_schemas
    from tests.watch.trl_process import TrlRun

    torchvision_schemas.install()
    from tests.watch.trl_models import write_qwen

    with tempfile.TemporaryDirectory() as folder:
        model = write_qwen(Path(folder) / "qwen")
        run = TrlRun(Path(folder) / "bench-trl", model, sys.argv[1], costs=True, settings={"max_steps": STEPS})
        run.wait()
        sys.stdout.write((Path(folder) / "bench-trl" / "costs.json").read_text())


if __name__ == "__main__":
    main()
