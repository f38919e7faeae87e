"""`omni-rl demo --serve`: real policies, and a dashboard that stays until Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omni_rl.client.blocking import Client

pytestmark = pytest.mark.slow


def test_the_demo_stays_up_with_its_run_until_ctrl_c(tmp_path: Path) -> None:
    small = {"STEPS": "2", "PROMPTS_PER_KIND": "1", "MAX_TOKENS": "8", "PORT": "0"}
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "omni-rl"), "demo", "--serve", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **{f"OMNI_RL_DEMO__{name}": value for name, value in small.items()}},
    ) as process:
        assert process.stdout is not None
        try:
            stays = (re.search(r"the dashboard stays at (\S+)/#run=(\S+)", line) for line in process.stdout)
            found = next(match for match in stays if match)
            with Client(found[1]) as client:
                assert [(line.step, line.severity) for line in client.steps(found[2])] == [(0, "ok"), (1, "ok")]
                assert client.syncs()[0].outcome == "committed"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
