"""A soak that is interrupted ends as if it had never been."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl.service.state import marked

pytestmark = pytest.mark.slow

UNDER_WAY = 5.0
"""Seconds of load, in which every caller has begun."""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the service's files lie. A Unix socket's path has 107 bytes at most, and pytest's own has some already."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        yield Path(directory)


def test_an_interrupted_soak_leaves_nothing(temporary: Path) -> None:
    out = temporary / "out"
    command = [sys.executable, "-m", "omni_rl", "soak", "--minutes", "30", "--out", str(out)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as soak:
        assert soak.stderr is not None
        said = [""]
        while not said[-1].startswith("load for"):
            said.append(soak.stderr.readline())
            assert said[-1], f"it ended by itself: {said}"
        (state,) = temporary.glob("omni-rl-bench-*/state.json")
        name = json.loads(state.read_text())["name"]
        assert marked(name)
        time.sleep(UNDER_WAY)
        soak.send_signal(signal.SIGINT)
        assert soak.wait() != 0
    assert marked(name) == []
    assert not list(Path("/dev/shm").glob(f"*{name}*"))
    assert not list(temporary.glob("omni-rl-*"))
    assert not out.exists()
