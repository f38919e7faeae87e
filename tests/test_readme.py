"""The README and the page of benchmarks have the figures of the committed results, and the README stays short."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_figures_come_from_the_committed_results() -> None:
    done = subprocess.run([sys.executable, "tools/figures.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run tools/figures.py after a benchmark"


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
