"""A short soak with every fault of a round; and one that is interrupted, which ends as if it had never been."""

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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount file systems of its own"),
]

UNDER_WAY = 5.0
"""Seconds of load, in which every caller has begun."""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the service's files lie. A Unix socket's path has 107 bytes at most, and pytest's own has some already."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        yield Path(directory)


LONG = ("memory, ", "p50 ", "p99 ", "kinds of process followed")
"""Goals that a short soak says nothing about: nothing has warmed up, and there are too few calls of a kind."""
TIMED = ("faults that it got over later than stated", "faults that /readyz did not show in time")
"""The times are stated of an idle machine, and other tests run beside this one."""


@pytest.mark.timeout(900)  # a round that takes long on a busy machine goes on to its end
def test_a_short_soak_loses_nothing_and_comes_back_from_every_fault(temporary: Path) -> None:
    command = [sys.executable, "-m", "omni_rl", "soak", "--minutes", "3", "--seed", "1", "--out", str(temporary)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(temporary)})
    assert (temporary / "soak.json").exists(), done.stderr
    found = json.loads((temporary / "soak.json").read_text())
    goals = {goal["name"]: goal for goal in found["goals"] if not goal["name"].startswith(LONG + TIMED)}
    assert len(goals) == len(found["goals"]) - len(LONG) - 1 - len(TIMED), "two are about memory"
    assert [goal for goal in goals.values() if not goal["met"]] == [], json.dumps(found["results"])
    assert {fault["how"] for fault in found["results"]["faults"]} == {"stop", "kill", "fill", "clock"}


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
