"""The wheel as pip installs it from a package index, alone in an environment of each Python that is here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT
from tests.watch.nemo_rl import clean_answers, dump

pytestmark = pytest.mark.slow

PYTHONS = ("3.11", "3.12", "3.13")
SESSION = Path(__file__).with_name("light_session.py")


def python(version: str) -> Path | None:
    """An interpreter of that version: this process's own, pyenv's, or one on the path."""
    if sys.version.startswith(f"{version}."):
        return Path(sys.executable).resolve()
    # Before the path, which has pyenv's shims even for versions that are not chosen there.
    if kept := sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        return kept[-1]
    found = shutil.which(f"python{version}")
    return None if found is None else Path(found)


@pytest.mark.parametrize(
    ("version", "extra"), [*((version, "") for version in PYTHONS), ("3.11", "[numpy1]")], ids=[*PYTHONS, "numpy1"]
)
def test_it_works_alone(wheel: Path, tmp_path: Path, version: str, extra: str) -> None:
    interpreter = python(version)
    if interpreter is None:
        assert "CI" not in os.environ, f"there is no Python {version} here; in CI nothing is left out"
        pytest.skip(f"there is no Python {version} here")
    subprocess.run([interpreter, "-m", "venv", tmp_path / "alone"], check=True)
    alone = tmp_path / "alone/bin/python"
    (archive,) = wheel.parent.glob("*.whl")
    # Without the bytecode of all modules, of which few are imported.
    install = [str(alone), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-compile"]
    installed = subprocess.run([*install, f"{archive}{extra}"], capture_output=True, text=True)
    if installed.returncode:
        reason = f"the package index does not give what it asks for: {installed.stderr.strip().splitlines()[-1]}"
        assert "CI" not in os.environ, reason
        pytest.skip(reason)
    dumps = tmp_path / "logs"
    dumps.mkdir()
    for step in (1, 2):
        dump(dumps, step, clean_answers(step))
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    session = [str(path) for path in (alone, SESSION, ROOT / "examples", dumps)]
    done = subprocess.run(session, cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert done.stdout.split() == ["ready", "posted", "stepped", "told", "watched", "judged"], done.stdout + done.stderr
    packages = subprocess.run([alone, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True).stdout
    assert not {"torch", "vllm", "ray"} & {line.split("==")[0] for line in packages.splitlines()}
    assert ("numpy==1." in packages) == bool(extra)
