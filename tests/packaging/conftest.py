"""Processes in which the wheel shadows the checkout."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture
def run(wheel: Path, tmp_path: Path) -> Run:
    """Runs code in a process with the wheel installed and no environment of ours, after what is in `before`."""

    def start(code: str, *arguments: str, before: tuple[Path, ...] = (), **variables: str) -> Done:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (*before, wheel))),
        }
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment | variables)

    return start
