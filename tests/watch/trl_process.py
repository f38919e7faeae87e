"""Starts TRL runs in processes of their own, and waits for them."""

import json
import os
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from omni_rl.watch.place import run_name
from tests.nursery import Forked, Ranks, call_main, started, torchrun
from tools import frameworks

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "services")]),
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
SECONDS = 240


def trl_nursery(module: str) -> AbstractContextManager[str]:
    """A nursery of TRL's environment, whose processes have imported `module`."""
    return started(module, python=str(frameworks.python("trl")), environment=os.environ | ENVIRONMENT)


class TrlRun:
    """One run of `trl_run.py`, in `output`, where run.log has what it says. Processes that a `nursery` of TRL's
    environment forks need not import anything; a run without one is a single new process."""

    def __init__(
        self, output: Path, model: Path, url: str, *, processes: int = 1, nursery: str | None = None, **options: Any
    ) -> None:
        self.name = run_name(output.name)
        self._output = output
        output.mkdir(parents=True, exist_ok=True)
        plan = json.dumps({"model": str(model), "output": str(output), **options})
        environment = {**os.environ, **ENVIRONMENT, "OMNI_RL_URL": url}
        log, main = output / "run.log", ("tests.watch.trl_run", [plan], environment)
        self._process: subprocess.Popen[bytes] | Forked | Ranks
        if nursery is None:
            command = [str(frameworks.python("trl")), str(ROOT / "tests/watch/trl_run.py"), plan]
            with log.open("wb") as out:
                self._process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        elif processes == 1:
            self._process = Forked(nursery, log, call_main, *main)
        else:
            self._process = torchrun(nursery, log, processes, *main)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def said(self) -> str:
        """What the run has written so far."""
        return (self._output / "run.log").read_text(errors="replace")

    def wait(self) -> list[dict[str, Any]]:
        """Returns the trainer's log of a run that ended well."""
        code = self._process.wait(SECONDS)
        assert code == 0, self.said[-4000:]
        found: list[dict[str, Any]] = json.loads((self._output / "log.json").read_text())
        return found

    def wait_for_failure(self) -> None:
        """Waits for a run that is to end badly."""
        assert self._process.wait(SECONDS) != 0

    def end(self) -> None:
        if self.running:
            self._process.kill()
            self._process.wait(SECONDS)
