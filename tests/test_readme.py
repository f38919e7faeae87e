"""The README's numbers are those of the committed result."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_comes_from_the_committed_result() -> None:
    done = subprocess.run([sys.executable, "tools/readme.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run tools/readme.py after make bench"
