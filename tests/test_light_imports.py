"""What must start fast, or run where torch is not installed, imports nothing heavy."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "vllm", "ray", "transformers", "torchvision"}
LIGHT = [
    "omni_rl.bridge.child",
    "omni_rl.bridge.protocol",
    "omni_rl.cli",
    "omni_rl.client.aio",
    "omni_rl.client.blocking",
    "omni_rl.client.bundle",
    "omni_rl.client.readers.trl",
    "omni_rl.config",
    "omni_rl.consistency.attribution.search",
    "omni_rl.consistency.corrections",
    "omni_rl.consistency.policy",
    "omni_rl.consistency.yardstick",
    "omni_rl.demo.report",
    "omni_rl.doctor",
    "omni_rl.files.companions",
    "omni_rl.files.weights",
    "omni_rl.jobs.following",
    "omni_rl.jobs.plot",
    "omni_rl.kinds",
    "omni_rl.ledger.export",
    "omni_rl.ledger.sync_journal",
    "omni_rl.media.types",
    "omni_rl.rollout.types",
    "omni_rl.tasks.settings",
    "omni_rl.train.settings",
    "omni_rl.train.targets",
    "omni_rl.train.types",
    "omni_rl.service.down",
    "omni_rl_services",
    "omni_rl_services.coordinator.__main__",
    "omni_rl_services.coordinator.app",
    "omni_rl_services.coordinator.supervisor",
]


@pytest.mark.parametrize("module", LIGHT)
def test_module_imports_nothing_heavy(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(json.loads(done.stdout))


def test_a_checkpoint_is_looked_at_before_anything_heavy_is_loaded() -> None:
    code = (
        "import json, sys\n"
        "from omni_rl.config import SMALL_CHECKPOINT\n"
        "from omni_rl.rollout.settings import require_checkpoint\n"
        "require_checkpoint(SMALL_CHECKPOINT)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(json.loads(done.stdout))
