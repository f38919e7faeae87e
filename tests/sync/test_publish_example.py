"""The example, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slabs import SlabPair
from omni_rl.sync.sources import PublishedSource
from tests.released import all_as_sent

from .conftest import ROOT, same

pytestmark = pytest.mark.slow


def test_a_plain_torchrun_script_publishes_what_it_trained(small_checkpoint: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "examples" / "publish_from_torchrun.py"), "--checkpoint", str(small_checkpoint)]
    with SlabOwner("trial", CheckpointTensors(small_checkpoint, torch.bfloat16, RELEASED).places(), tmp_path) as owner:
        done = subprocess.run(
            [*run, *script, "--into", "trial", "--number", "7", "--slabs", str(tmp_path)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        version, _, path = done.stdout.strip().partition(" in ")
        assert version.startswith("trial/1/7/")
        pair = SlabPair(owner.directory)
        filled = pair.fill(pair.idle(None), PublishedSource(Path(path), version))
        released = load_file(small_checkpoint / "model.safetensors")
        stepped = {n: t.float() - 1e-3 if t.is_floating_point() else t for n, t in released.items()}
        assert same(pair.at(filled.slab.path).tensors(), all_as_sent(stepped, torch.bfloat16))
