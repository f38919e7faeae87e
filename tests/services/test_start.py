"""How the coordinator is started from a checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MANY = ["one.json", "two.json"]


@pytest.mark.parametrize("module", ["omni_rl_services.coordinator", "services.coordinator"])
def test_both_names_of_the_coordinator_answer_and_the_old_one_says_so(module: str) -> None:
    started = subprocess.run([sys.executable, "-m", module, *MANY], cwd=ROOT, capture_output=True, text=True)
    assert started.returncode == 2
    assert "usage: python -m omni_rl_services.coordinator" in started.stderr
    assert ("deprecated" in started.stderr) == (module == "services.coordinator")
