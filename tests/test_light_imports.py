"""What must start fast, or run where torch is not installed, imports nothing heavy and changes nobody's environment."""

import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOMS = [
    "omni_rl.api",
    "omni_rl.client",
    "omni_rl.commands",
    "omni_rl.consistency",
    "omni_rl.doctor",
    "omni_rl.files",
    "omni_rl.ledger",
    "omni_rl.plan",
    "omni_rl.service",
    "omni_rl.tasks",
    "omni_rl.watch",
    "omni_rl_services",
]
ALONE = [
    "omni_rl.bridge.child",
    "omni_rl.bridge.protocol",
    "omni_rl.bridge.settings",
    "omni_rl.cli",
    "omni_rl.config",
    "omni_rl.demo.report",
    "omni_rl.errors",
    "omni_rl.jobs.following",
    "omni_rl.jobs.plot",
    "omni_rl.kinds",
    "omni_rl.media.types",
    "omni_rl.policies.dealing",
    "omni_rl.policies.patience",
    "omni_rl.policies.settings",
    "omni_rl.policies.types",
    "omni_rl.processes",
    "omni_rl.rollout.settings",
    "omni_rl.rollout.types",
    "omni_rl.runtime",
    "omni_rl.settings",
    "omni_rl.torchvision_schemas",
    "omni_rl.train.settings",
    "omni_rl.train.targets",
    "omni_rl.train.types",
    "omni_rl.verl_plugin",
    "omni_rl.vllm_plugin",
]
"""Of rooms whose other modules are heavy."""
HEAVY_ONES = {"omni_rl.client.weights"}
"""Of the light rooms: for a process that has torch."""
HEAVY = {"torch", "vllm", "ray", "transformers", "torchvision"}
IMPORT_ALL = """
import importlib, json, os, sys

found = {}
for name in sys.argv[2:]:
    before = dict(os.environ)
    importlib.import_module(name)
    heavy = set(sys.argv[1].split(",")) & set(sys.modules)
    changed = {key for key in before.keys() | os.environ.keys() if before.get(key) != os.environ.get(key)}
    found[name] = sorted(heavy | changed)
print(json.dumps(found))
"""


def modules(room: ModuleType) -> Iterator[str]:
    """The room and all that is in it."""
    yield room.__name__
    for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        yield module.name


def test_light_rooms_import_nothing_heavy_and_leave_the_environment(tmp_path: Path) -> None:
    rooms = {name for room in ROOMS for name in modules(import_module(room))}
    names = [*ALONE, *sorted(rooms - HEAVY_ONES)]
    assert len(names) > 100, "the walk has found next to nothing"
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [sys.executable, "-c", IMPORT_ALL, ",".join(HEAVY), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=bare, check=True)
    assert {name: found for name, found in json.loads(done.stdout).items() if found} == {}


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
