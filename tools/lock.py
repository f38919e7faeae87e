"""Writes requirements/cpu.lock: what pip resolves for the CPU set, less what does not work beside a CPU torch; and in
every lock the hashes of all files that its packages have on PyPI, which is what uv is for."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "cpu.lock"
FRAMEWORKS = sorted(set(LOCK.parent.glob("*.lock")) - {LOCK})
UV = "uv==0.13.9"
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
# torch comes first and alone: its CPU build is not on PyPI, which has no hashes of it.
"""


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pip = [sys.executable, "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "--target", folder, UV], check=True)
        if "--hashes" not in arguments:
            _resolve(pip, place)
        for lock in (LOCK, *FRAMEWORKS):
            _write_hashes(lock, place)


def _resolve(pip: list[str], place: Path) -> None:
    report = place / "report.json"
    command = [*pip, "--dry-run", "--ignore-installed", "--report", str(report)]
    subprocess.run([*command, f"{ROOT}[cpu,demo,dev]", *BUILD], check=True)
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


def _write_hashes(lock: Path, place: Path) -> None:
    """Keep a lock's comments, its pins and torch's line, and give every other pin its hashes anew."""
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("    --hash")]
    pins = [line.removesuffix(" \\") for line in lines if line and not line.startswith("#")]
    hashed = [pin for pin in pins if not pin.startswith("torch==")]
    (place / "pins.txt").write_text("\n".join(hashed) + "\n")
    command = [str(place / "bin" / "uv"), "pip", "compile", "-q", "--universal", "--no-deps", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--no-cache", str(place / "pins.txt"), "-o", str(place / "hashed.txt")]
    subprocess.run(command, check=True)
    first = [line for line in lines if line.startswith("#")] + [pin for pin in pins if pin not in hashed]
    lock.write_text("\n".join(first) + "\n" + (place / "hashed.txt").read_text())
    print(f"{lock}: {len(pins)} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
