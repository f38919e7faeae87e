"""The example runs as its text says, against a live coordinator."""

import subprocess
import sys
from pathlib import Path

from tests.services.live import live

EXAMPLE = Path(__file__).parents[2] / "examples" / "post_numpy.py"


def test_post_numpy(tmp_path: Path) -> None:
    with live(tmp_path) as url:
        done = subprocess.run([sys.executable, EXAMPLE, "--url", url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[2] for line in lines[:5]] == ["ok", "ok", "ok", "ok", "mask"]
    assert "overall: gen_kl_error" in lines[4]
    assert "multiply each token's loss" in lines[5]
