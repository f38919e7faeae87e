"""What a GPU machine has for the 30B checkpoint; see docs/gpu.md."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from omni_rl.doctor.finding import DoctorFinding, installed
from omni_rl.doctor.machine import SHARED_MEMORY

DEVICES = Path("/proc/driver/nvidia/gpus")
QUERY = ("index", "name", "driver_version", "memory.total", "compute_cap", "mig.mode.current")
SECONDS = 20.0
"""Seconds for nvidia-smi, which wakes a device where there is no persistence daemon."""
DRIVER = 525
"""The oldest driver for CUDA 12 (NVIDIA's table of CUDA's minor version compatibility)."""
BFLOAT16 = 8.0
"""The compute capability of Ampere, the first with bfloat16."""
WEIGHTS_GIB = 62
"""GiB of the 33.0 billion parameters in bfloat16 of the largest released checkpoint: what one engine's GPU holds."""
KERNELS = {"mamba-ssm": "the training copy's scan", "causal-conv1d": "the training copy's convolution"}


@dataclass(frozen=True)
class Device:
    """A device, which is one line of nvidia-smi's output; `memory` is in GiB."""

    index: str
    name: str
    driver: str
    memory: float
    capability: float
    mig: bool

    @classmethod
    def parse(cls, line: str) -> "Device":
        """Parse a line of `nvidia-smi --query-gpu=QUERY --format=csv,noheader,nounits`. Raises ValueError for another
        line."""
        index, name, driver, memory, capability, mig = (part.strip() for part in line.split(","))
        return cls(index, name, driver, float(memory) / 1024, float(capability), mig == "Enabled")


def cuda_devices(devices: Path = DEVICES) -> int:
    """Return how many NVIDIA devices this machine has, by its driver; neither torch nor nvidia-smi is asked."""
    return len(list(devices.glob("*")))


def cpu_build() -> str | None:
    """Return the installed torch's version if torch, and so the engine, is a build for the CPU alone; else None."""
    version = installed("torch") or ""
    return version if "+cpu" in version else None


def gpus(devices: Path = DEVICES) -> list[DoctorFinding]:
    """Return the findings about every device, and about what has to be installed beside them; a single one if there is
    none."""
    count = cuda_devices(devices)
    if not count:
        return [DoctorFinding("gpu", "ok", "none: everything runs on the CPU")]
    try:
        found = _ask()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        fix = "install the driver's tools, and give the container the devices (docker: --gpus all)"
        return [
            DoctorFinding("gpu", "missing", f"{count} NVIDIA device(s), but nvidia-smi does not tell: {error}", fix)
        ]
    return [*(_device(device) for device in found), _driver(found[0].driver), *_builds(), _slabs()]


def _ask() -> list[Device]:
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout  # noqa: S603
    found = [Device.parse(line) for line in out.splitlines() if line.strip()]
    if not found:
        raise ValueError("it lists none")
    return found


def _device(device: Device) -> DoctorFinding:
    item = f"gpu {device.index}"
    detail = f"{device.name}, {device.memory:.0f} GiB, compute capability {device.capability}"
    if device.mig:
        return DoctorFinding(item, "warn", f"{detail}, MIG", "an engine wants a whole device: nvidia-smi -mig 0")
    if device.capability < BFLOAT16:
        return DoctorFinding(item, "missing", detail, "bfloat16 needs compute capability 8.0: use another device")
    if device.memory < WEIGHTS_GIB:
        fix = "only smaller checkpoints fit: an engine is not spread over several devices"
        return DoctorFinding(item, "warn", f"{detail}; the 30B checkpoint's weights are {WEIGHTS_GIB} GiB", fix)
    return DoctorFinding(item, "ok", f"{detail}; the 30B checkpoint's weights are {WEIGHTS_GIB} GiB")


def _driver(version: str) -> DoctorFinding:
    major = version.split(".")[0]
    if not major.isdigit() or int(major) < DRIVER:
        return DoctorFinding("gpu driver", "missing", version, f"CUDA 12 needs driver {DRIVER} or newer")
    return DoctorFinding("gpu driver", "ok", version)


def _builds() -> list[DoctorFinding]:
    """Return the findings about both policies' packages, which should be built for CUDA."""
    found = []
    if cpu_build() is not None:
        fix = "a new virtual environment with the extra gpu: docs/gpu.md"
        found.append(
            DoctorFinding("gpu build", "warn", "torch and the engine are CPU builds: the devices stay idle", fix)
        )
    for name, purpose in KERNELS.items():
        version = installed(name)
        if version is None:
            found.append(
                DoctorFinding(name, "warn", f"not installed: {purpose} runs in plain PyTorch", f"pip install {name}")
            )
        else:
            found.append(DoctorFinding(name, "ok", f"{version}, {purpose}"))
    return found


def _slabs() -> DoctorFinding:
    """Return the finding about shared memory: a host with an engine holds two slabs of all weights."""
    total = shutil.disk_usage(SHARED_MEMORY).total / 2**30 if Path(SHARED_MEMORY).is_dir() else 0.0
    detail = f"{total:.0f} GiB of {SHARED_MEMORY}; two slabs of the 30B checkpoint are {2 * WEIGHTS_GIB} GiB"
    if total < 2 * WEIGHTS_GIB:
        return DoctorFinding(
            "gpu slabs", "warn", detail, f"mount it larger (docker: --shm-size {2 * WEIGHTS_GIB + 8}g)"
        )
    return DoctorFinding("gpu slabs", "ok", detail)
