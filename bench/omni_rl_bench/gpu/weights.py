"""Moves weights of the released width from a device to an engine: into the slab, and digested."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.models.nemotron_omni.shards import released_tensors
from omni_rl.sync import fill
from omni_rl.sync.manifest import end
from omni_rl.sync.ownership import SHARED_MEMORY
from omni_rl.sync.slab import Slab
from omni_rl.train.device import own_device
from omni_rl_bench.gpu.clock import seconds
from omni_rl_bench.gpu.wide import FEW_LAYERS, released

COPIED_BYTES = 2**31
COMPILED_WITH = 8
"""How many tensors are digested first, to have the loops compiled."""


def measure(_: Path) -> dict[str, Any]:
    """Return GB a second of the bytes that an engine gets, each done once, beside plain copies to the host."""
    device = own_device("cuda")
    tensors = released_tensors(released(torch.bfloat16, device, FEW_LAYERS))
    places = fill.places_of(tensors, torch.bfloat16, RELEASED)
    size = end(places)
    smallest = sorted(tensors, key=lambda each: math.prod(each.shape))[:COMPILED_WITH]
    fill.digest(smallest, fill.places_of(smallest, torch.bfloat16, RELEASED))
    digest = _once(lambda: fill.digest(tensors, places))
    with TemporaryDirectory(dir=SHARED_MEMORY) as memory:
        slab = Slab.create(Path(memory) / "slab", size)
        written = _once(lambda: fill.fill(slab, tensors, places, run="bench", attempt=1, number=0, origin="trainer"))
        slab.close()
    return {
        "bytes": size,
        "slab_gb_per_second": round(size / written / 1e9, 2),
        "digest_gb_per_second": round(size / digest / 1e9, 2),
        "pinned_gb_per_second": round(_to_host(pinned=True), 2),
        "pageable_gb_per_second": round(_to_host(pinned=False), 2),
    }


def _once(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _to_host(*, pinned: bool) -> float:
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda").random_(0, 256)
    target = torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=pinned)
    return COPIED_BYTES / seconds(lambda: target.copy_(source, non_blocking=pinned)) / 1e9
