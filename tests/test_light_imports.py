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

import omni_rl

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
    "omni_rl.bridge.seam",
    "omni_rl.demo.report",
    "omni_rl.jobs.following",
    "omni_rl.jobs.plot",
    "omni_rl.policies.dealing",
    "omni_rl.policies.retries",
    "omni_rl.train.targets",
]
"""Of rooms whose other modules are heavy."""
HEAVY_ONES = {"omni_rl.client.weights", "omni_rl.actors", "omni_rl.cuda", "omni_rl.numba_beside_vllm"}
"""Of the light rooms, and of those modules that are in no room: for a process that has torch, Ray or vLLM."""
IS_COMMAND = {"omni_rl.__main__"}
"""Importing it runs a command."""
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


def anywhere() -> Iterator[str]:
    """What is in no room, and every room's types and settings."""
    package = Path(omni_rl.__file__).parent
    for path in [*package.glob("*.py"), *package.rglob("types.py"), *package.rglob("settings.py")]:
        yield ".".join(("omni_rl", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")


def test_light_rooms_import_nothing_heavy_and_leave_the_environment(tmp_path: Path) -> None:
    rooms = {name for room in ROOMS for name in modules(import_module(room))}
    names = [*ALONE, *sorted(rooms.union(anywhere()) - HEAVY_ONES - IS_COMMAND)]
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


def test_whoever_drives_the_policies_loads_neither_torch_nor_vllm_before_it_asks_them() -> None:
    jobs = modules(import_module("omni_rl.jobs"))
    assert {"torch", "vllm"} & _loaded("omni_rl.policies.attach", *jobs) == set()


def test_whoever_asks_engines_and_ranks_loads_nothing_that_only_they_need() -> None:
    """The bridge, the demo and a replay would start ten seconds later, and hold a few hundred MiB for nothing."""
    asking = ("omni_rl.bridge.cluster", "omni_rl.demo.pair", "omni_rl.demo.run", "omni_rl.replay.run")
    assert {"vllm", "transformers"} & _loaded(*asking) == set()
    assert {"torch.distributed.tensor"} & _loaded("omni_rl.bridge.cluster") == set()


def _loaded(*names: str) -> set[str]:
    code = f"import json, sys, {', '.join(names)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))
