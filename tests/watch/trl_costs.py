"""What watching, and announcing its updates, costs a real TRL run: processor time of the thread that trains, apart from
what TRL itself does in it.

    python -m tests.watch.trl_costs URL

trains random Qwen2s of two sizes, and a Qwen2-VL whose prompts have pictures, in TRL's environment, with OMNI_RL_AGENT
set, posts to the coordinator at URL, and prints a JSON object: for each model the run's name, how many parameters it
has, and of each step the milliseconds that watching and announcing took of its thread, and the seconds from its begin
to the next one's.
"""

import json
import math
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from omni_rl.watch import trl, trl_engine, trl_updates
from omni_rl.watch.place import run_name

SIZES: dict[str, dict[str, int]] = {
    "tiny": {},
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8},
}
"""What is not as in the tests' models: one of them, and one with more to hash."""
PICTURES = "picture"
"""The model whose prompts have a picture each."""
STEPS = 12


class Costs:
    """Adds up the time in the methods that the hook puts in the place of TRL's, less that in TRL's own below them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._began = 0.0

    def install(self) -> None:
        """Measure every method that is wrapped from now on."""
        modules: dict[Any, str] = {trl: "watching", trl_engine: "watching", trl_updates: "announcing"}
        for module, kind in modules.items():
            module.wrap = self._measuring(module.wrap, kind)

    def write(self, path: Path) -> None:
        self._end_step()
        path.write_text(json.dumps(self.steps))

    def _measuring(self, wrap: Callable[..., None], kind: str) -> Callable[..., None]:
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
                    self._spent[kind] += time.thread_time() - began - below

            wrap(owner, name, measured)

        return measured_wrap

    def _end_step(self) -> None:
        now = time.perf_counter()
        if self._began:
            spent = {kind: 1e3 * self._spent[kind] for kind in ("watching", "announcing")}
            self.steps.append({**spent, "seconds": now - self._began})
        self._spent.clear()
        self._began = now


def main() -> None:
    from omni_rl import torchvision_schemas
    from tests.watch.trl_process import TrlRun

    torchvision_schemas.install()
    from tests.watch.trl_models import write_qwen, write_qwen_vl

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {name: write_qwen(Path(folder) / name, **sizes) for name, sizes in SIZES.items()}
        models[PICTURES] = write_qwen_vl(Path(folder) / PICTURES)
        for name, model in models.items():
            output, sees = Path(folder) / f"bench-{name}", name == PICTURES
            os.environ |= {"OMNI_RL_AGENT": sys.argv[1], "OMNI_RL_RUN": run_name(output.name)}
            settings = {"max_steps": STEPS}
            run = TrlRun(output, model, sys.argv[1], costs=True, images=sees, collapse=sees, settings=settings)
            run.wait()
            steps = json.loads((output / "costs.json").read_text())
            found[name] = {"run": run.name, "parameters": _parameters(model), "steps": steps}
    sys.stdout.write(json.dumps(found))


def _parameters(model: Path) -> int:
    with safe_open(model / "model.safetensors", "np") as weights:
        names = weights.keys()
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)


if __name__ == "__main__":
    main()
