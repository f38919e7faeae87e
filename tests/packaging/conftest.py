"""The wheel as `pip` would install it, and processes in which it shadows the checkout."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the wheel installs."""
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(built), str(ROOT)], check=True, capture_output=True)
    (archive,) = built.glob("*.whl")
    installed = built / "installed"
    with zipfile.ZipFile(archive) as files:
        files.extractall(installed)
    return installed


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
