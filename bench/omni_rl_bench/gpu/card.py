"""Describes the device, what `omni-rl doctor` says of it, and the two rates that nothing on it exceeds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.cuda import nccl

from omni_rl.doctor.finding import installed
from omni_rl.doctor.gpu import KERNELS, gpus
from omni_rl_bench.gpu.clock import seconds

SIDE = 8192
COPY_BYTES = 2**32
PACKAGES = ("torch", "transformers", "triton", "ray", *KERNELS)


def measure(_: Path) -> dict[str, Any]:
    """Return the device and its rates on random data: zeros would run faster."""
    device = torch.device("cuda", 0)
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "nccl": ".".join(map(str, nccl.version())),  # type: ignore[no-untyped-call]
        "packages": {name: installed(name) for name in PACKAGES},
        "doctor": [asdict(finding) for finding in gpus()],
        "bfloat16_tflops": round(matmul_rate(device) / 1e12, 1),
        "copy_gb_per_second": round(copy_rate(device) / 1e9, 1),
    }


def matmul_rate(device: torch.device) -> float:
    """Return the operations a second of one large bfloat16 product."""
    one, other = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * SIDE**3 / seconds(lambda: one @ other)


def copy_rate(device: torch.device) -> float:
    """Return the bytes a second, read and written, of a copy within the device's memory."""
    source = torch.randn(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / seconds(lambda: target.copy_(source))
