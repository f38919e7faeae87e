"""Compares the trainer group, a Ray actor on a device, with one on the host: scores, a step, slab, checkpoint."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import torch

from omni_rl.rollout.types import Rollout
from omni_rl.settings import DeviceKind
from omni_rl.sync.ownership import SHARED_MEMORY
from omni_rl.sync.slab import Slab
from omni_rl.train.checkpoint import read_record
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from omni_rl.train.types import Score
from omni_rl_bench.gpu.agreement import Dtype, figures
from omni_rl_bench.gpu.answers import answers

CPUS = 4
THREADS = 2
"""The threads of a rank: other parts run beside this one."""
SLAB_BYTES = 2**26
ADVANTAGES = (1.0, -0.5, 0.25, -1.0, 2.0)


def measure(checkpoint: Path, dtype: Dtype) -> dict[str, Any]:
    """Compare both groups. `equal` has what must be the same bit for bit, between them or from one call to the next."""
    given = answers(checkpoint)
    # A Ray of its own, whatever else runs on this machine.
    ray.init("local", num_cpus=CPUS, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with (
            TemporaryDirectory() as folder,
            TemporaryDirectory(dir=SHARED_MEMORY) as memory,
            _group(checkpoint, dtype, "cpu") as host,
            _group(checkpoint, dtype, "cuda") as device,
        ):
            return _measure(host, device, given, dtype, Path(folder), Path(memory))
    finally:
        ray.shutdown()


@contextmanager
def _group(checkpoint: Path, dtype: Dtype, kind: DeviceKind) -> Iterator[TrainerGroup]:
    settings = TrainSettings(world_size=1, dtype=dtype, device=kind, threads=THREADS, max_pack_tokens=2048)
    with TrainerGroup.start(checkpoint, settings, run="bench") as group:
        yield group


def _measure(
    host: TrainerGroup, device: TrainerGroup, given: Sequence[Rollout], dtype: Dtype, folder: Path, memory: Path
) -> dict[str, Any]:
    equal = {
        "digest of the loaded weights": host.version().digest == device.version().digest,
        "slab of the loaded weights": _slabs_equal(host, device, memory),
    }
    host_scores = host.score(given)
    before, again = device.score(given), device.score(given)
    routed = [replace(answer, experts=score.experts) for answer, score in zip(given, host_scores, strict=True)]
    replayed = figures(host.score(routed, replay=True), device.score(routed, replay=True), given, dtype)

    device.take_snapshot("before")
    advantages = [ADVANTAGES[number % len(ADVANTAGES)] for number in range(len(given))]
    host_step, step = host.update(given, advantages), device.update(given, advantages)
    earlier = device.score(given, snapshot="before")
    equal |= {
        "scores, a second time": _apart(before, again) == 0,
        "scores by a snapshot, after a step": _apart(before, earlier) == 0,
        "their version": earlier[0].version == before[0].version,
    }
    learnt = figures(host.score(given), device.score(given), given, dtype)

    first, second = folder / "first", folder / "second"
    digest = device.version().digest
    device.save(first)
    device.load(first)
    device.save(second)
    host.load(first)
    equal |= {
        "checkpoint saved, loaded and saved": read_record(first).digests == read_record(second).digests,
        "digest of the checkpoint on the device": device.version().digest == digest,
        "digest of the checkpoint on the host": host.version().digest == digest,
        "slab of the checkpoint": _slabs_equal(host, device, memory),
    }
    device.update(given, advantages)
    continued = device.version().digest
    device.load(second)
    device.update(given, advantages)
    return {
        "equal": equal,
        "device_against_host": figures(host_scores, before, given, dtype),
        "device_against_host_replayed": replayed,
        "device_against_host_after_a_step": learnt,
        "step": {"host": asdict(host_step), "device": asdict(step)},
        "step_repeats_bit_for_bit": device.version().digest == continued,
    }


def _slabs_equal(host: TrainerGroup, device: TrainerGroup, memory: Path) -> bool:
    """Return whether both write the same slab: digest, the bytes' own checksums, and every tensor."""
    slabs = []
    digests = set()
    for name, group in (("host", host), ("device", device)):
        path = memory / name
        if not path.exists():
            Slab.create(path, SLAB_BYTES).close()
        digests.add(group.fill(path).version.digest)
        slabs.append(Slab.open(path))
    ours, theirs = (slab.tensors() for slab in slabs)
    same = ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    return len(digests) == 1 and same and not any(slab.check() for slab in slabs)


def _apart(one: Sequence[Score], other: Sequence[Score]) -> float:
    return max(float(np.abs(a.logprobs - b.logprobs).max()) for a, b in zip(one, other, strict=True))
