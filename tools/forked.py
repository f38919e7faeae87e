"""Runs pytest in forks of this process, in a copy of the checkout: importing, which takes longest, is done once."""

import contextlib
import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from omni_rl.runtime import prepare

OURS = ("omni_rl", "omni_rl_services", "omni_rl_bench", "tests")
OTHERS = (
    "fastapi.testclient",
    "hypothesis",
    "pyarrow.parquet",
    "ray",
    "safetensors.torch",
    "schemathesis",
    "sqlalchemy",
    "torch",
)
"""The modules that the tests' processes would spend most of their time on importing."""
NO_BYTECODE: Mapping[str, str] = {"PYTHONDONTWRITEBYTECODE": "1"}
"""The environment for tests of changed code, whose bytecode must not be there for the next change."""


def import_others() -> None:
    """Import what is not ours, once: processes that are forked afterwards have it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare()
    for name in OTHERS:
        importlib.import_module(name)
    # The collections that pytest asks for see only what the tests made.
    gc.freeze()


def copy_checkout(root: Path, tree: Path) -> None:
    """Bring a copy of the tracked files up to date, so that what runs in it is never the checkout itself."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True)
    names = {name for name in listed.stdout.split("\0") if name and (root / name).is_file()}
    for path in [path for path in tree.rglob("*.py") if str(path.relative_to(tree)) not in names]:
        path.unlink()
    for name in names:
        source, target = root / name, tree / name
        if not target.is_file() or source.read_bytes() != target.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def run_pytest(
    tree: Path,
    arguments: Sequence[str],
    seconds: float,
    plugin: object = None,
    variables: Mapping[str, str] = NO_BYTECODE,
) -> int | None:
    """Run pytest in a fork of this process and return its status, or None where it took longer than `seconds`.

    What the tests have started ends with them. `variables` are their environment's.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        with (tree.parent / "output.txt").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        paths = [str(tree), str(tree / "services"), str(tree / "bench")]
        os.environ |= {"PYTHONPATH": os.pathsep.join(paths), **variables}
        sys.path[:0] = paths
        # The checkout's own modules, which this tool has imported, are not the ones under test.
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            del sys.modules[name]
        sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in variables
        # Modules that are imported already lose pytest's wording of failed asserts, which nobody reads here.
        options = ["-m", "", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = pytest.main([*options, *arguments], plugins=[plugin] if plugin else [])
        os._exit(int(code))
    until = time.monotonic() + seconds
    done, status = 0, 0
    while not done and time.monotonic() < until:
        time.sleep(0.02)
        done, status = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not done:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def failure(tree: Path) -> str:
    """Return which test failed in the last run, or what pytest said of no test at all."""
    lines = (tree.parent / "output.txt").read_text(errors="replace").splitlines()
    failed = [line for line in lines if line.startswith(("FAILED tests", "ERROR tests"))]
    return (failed or lines[-1:] or [""])[0]
