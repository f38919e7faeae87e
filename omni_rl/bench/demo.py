"""The demo in both dtypes, as a user runs it; `bench/demo.json` is where the README's table comes from."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from omni_rl.bench.machine import machine
from omni_rl.errors import OmniRLError

DTYPES = ("float32", "bfloat16")


class BenchmarkError(OmniRLError, RuntimeError):
    """A measured command failed, so there is no result."""

    code = "benchmark_failed"


def bench_demo(out: Path) -> Path:
    """Run `omni-rl demo` once a dtype and keep both reports with the wall-clock seconds of each."""
    result: dict[str, object] = {"command": "omni-rl bench demo", "machine": machine()}
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "omni_rl", "demo", "--dtype", dtype, "--out", folder]
            started = time.monotonic()
            done = subprocess.run(command, check=False)  # noqa: S603 - our own command line
            seconds = time.monotonic() - started
            if done.returncode not in (0, 1):
                raise BenchmarkError(f"{' '.join(command[2:])} ended with exit code {done.returncode}")
            report = json.loads((Path(folder) / "report.json").read_text())
        result[dtype] = {"exit_code": done.returncode, "wall_seconds": round(seconds, 1), "report": report}
    path = out / "demo.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
