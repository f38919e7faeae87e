"""An installation of the wheel with what it asks for and nothing else: no torch, no vLLM, no Ray.

Python runs without its site-packages here, and finds the packages that the wheel's requirements name, and theirs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PathDistribution, distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.packaging.conftest import ROOT, Done
from tests.test_light_imports import HEAVY

IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
ROOMS = (
    "api",
    "cli",
    "client",
    "commands.serve",
    "config",
    "consistency",
    "doctor",
    "ledger",
    "service.serve",
    "watch",
)


def closure(wanted: list[str]) -> Iterator[str]:
    """Names of the distributions that these requirements install, without extras that nobody asked for."""
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in wanted]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for asked in ("", *requirement.extras):
            if (requirement.name, asked) not in seen:
                seen.add((requirement.name, asked))
                waiting += [(Requirement(text), asked) for text in requires(requirement.name) or []]
    yield from {name for name, _ in seen}


@pytest.fixture(scope="session")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that stands for the site-packages of a light installation."""
    site = tmp_path_factory.mktemp("light")
    (metadata,) = wheel.glob("*.dist-info")
    for name in closure(list(PathDistribution(metadata).requires or [])):
        found = distribution(name)
        for top in {Path(str(file)).parts[0] for file in found.files or [] if not str(file).startswith("..")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    for path in wheel.iterdir():
        (site / path.name).symlink_to(path)
    return site


def started(light: Path, cwd: Path, *arguments: str, **variables: str) -> Done:
    bare = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PYTHONPATH": str(light)}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=bare | variables, timeout=120)


@pytest.mark.slow
def test_what_it_asks_for_is_light_and_enough(light: Path, tmp_path: Path) -> None:
    assert not {path.name for path in light.iterdir()} & (HEAVY | {"numba", "av", "PIL", "pandas"})
    done = started(light, tmp_path, "-c", IMPORT, *(f"omni_rl.{room}" for room in ROOMS))
    assert done.returncode == 0, done.stderr[-3000:]


def test_commands_of_our_pair_say_what_they_lack(light: Path, tmp_path: Path) -> None:
    done = started(light, tmp_path, "-m", "omni_rl", "demo")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error [not_installed]: this command needs")
    assert "make setup" in line
    done = started(light, tmp_path, "-m", "omni_rl", "doctor")
    assert done.returncode == 0, done.stdout
    assert "our pair" in done.stdout


@pytest.mark.parametrize("command", [["bench", "sync", "--syncs", "3"], ["sabotage", "--fault", "x"], ["soak"]])
def test_commands_of_a_checkout_say_so(light: Path, tmp_path: Path, command: list[str]) -> None:
    done = started(light, tmp_path, "-m", "omni_rl", *command)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"omni-rl {command[0]} runs from a checkout" in line


def test_it_plans_with_what_was_measured_for_it(light: Path, tmp_path: Path) -> None:
    done = started(light, tmp_path, "-m", "omni_rl", "plan", "--json")
    assert done.returncode == 0, done.stderr
    here = subprocess.run(
        [sys.executable, "-m", "omni_rl", "plan", "--json"], capture_output=True, text=True, cwd=tmp_path
    )
    assert json.loads(done.stdout) == json.loads(here.stdout)


@pytest.mark.slow
def test_it_serves_and_judges_what_is_posted(light: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-m", "omni_rl", "serve", "--port", "0"]
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(light), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=bare, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = next(line for line in server.stdout if "OMNI_RL_URL=" in line)
            where = dict(word.split("=", 1) for word in line.split() if word.startswith("OMNI_RL_"))
            posted = started(light, tmp_path, str(ROOT / "examples/post_numpy.py"), "--steps", "3", **where)
        finally:
            server.terminate()
    assert posted.returncode == 0, posted.stderr[-3000:]
    first, *_, last = [line for line in posted.stdout.splitlines() if line.startswith("step")]
    assert first.startswith("step 0: ok")
    assert not last.startswith("step 2: ok")


def test_it_judges_files(light: Path, tmp_path: Path) -> None:
    row = {"rollout_logprobs": [-1.0] * 8, "train_logprobs": [-1.0] * 8}
    (tmp_path / "1.jsonl").write_text("".join(json.dumps({"sample": name, **row}) + "\n" for name in "abc"))
    done = started(light, tmp_path, "-m", "omni_rl", "judge", "1.jsonl")
    assert (done.returncode, done.stdout.split()[:3]) == (0, ["step", "1", "ok"]), done.stderr[-3000:]


@pytest.mark.slow
def test_a_wheel_is_the_same_whenever_it_is_built(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    built = []
    for name in ("one", "two"):
        subprocess.run([*command, "-w", str(tmp_path / name), str(ROOT)], check=True, capture_output=True)
        (archive,) = (tmp_path / name).glob("*.whl")
        built.append((archive.name, archive.read_bytes()))
    assert built[0] == built[1]
