"""Writes requirements/cpu.lock: what pip resolves for the CPU set, less what does not work beside a CPU torch."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "cpu.lock"
BUILD = ["hatchling==1.28.0", "editables"]
LEFT_OUT = {
    "torchaudio": "PyPI's build needs CUDA and breaks `import transformers`; nothing here uses it",
    "torchcodec": "PyPI's build needs CUDA; PyAV decodes instead",
    "triton": "1 GB, and vLLM disables it on CPU",
    "omni-rl": "this package",
}
X86_ONLY = {"intel-openmp", "intel-cmplr-lib-ur"}
HEADER = """\
# The CPU set, installed by `make setup` with --no-deps. Written by `make lock`; do not edit.
# torch comes first and alone: its CPU build is not on PyPI.
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", report, f"{ROOT}[cpu,demo,dev]", *BUILD], check=True)
        resolved = json.loads(report.read_text())["install"]
    pins = {}
    for package in resolved:
        name = package["metadata"]["name"].lower().replace("_", "-")
        marker = ' ; platform_machine == "x86_64"' if name in X86_ONLY else ""
        if name not in LEFT_OUT:
            pins[name] = f"{name}=={package['metadata']['version']}{marker}"
    torch = pins.pop("torch")
    left_out = "".join(f"# left out: {name}: {why}\n" for name, why in LEFT_OUT.items() if name != "omni-rl")
    LOCK.write_text(HEADER + left_out + "\n".join([torch, *sorted(pins.values())]) + "\n")
    print(f"{LOCK}: {len(pins) + 1} packages")


if __name__ == "__main__":
    main()
