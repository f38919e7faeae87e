"""Fixtures that every room may use."""

import gc
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from omni_rl.config import SMALL_CHECKPOINT
from omni_rl.runtime import prepare
from tests.postgres import Postgres, find_binaries

# Several test processes share the machine: each computes with one thread, and none starves another's actors, which Ray
# would start with a lower priority. Read by what is imported later, and inherited by every process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")
# How long an example takes on a machine that others use says nothing.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
# What `omni-rl` does first: engines, renderers and ranks of these tests are in this process.
prepare()

# The assignment that marks every test of a module, from the beginning of its line.
ALL_SLOW = re.compile(r"^pytestmark = \[?pytest\.mark\.slow\b", re.MULTILINE)


class NotImported(pytest.Module):
    """A module of which no test would be run; vLLM and Ray need seconds to be imported, in each test process."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        return []


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Where slow tests are left out, so are modules of them alone, unless they are named: the others are collected."""
    named = parent.session.isinitpath(module_path)
    if parent.config.option.markexpr == "not slow" and not named and ALL_SLOW.search(module_path.read_text()):
        return NotImported.from_parent(parent, path=module_path)
    return None


def pytest_collection() -> None:
    """What is collected stays to the end: the garbage collector would walk over it again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def small_checkpoint() -> Path:
    """The committed small Omni, in bfloat16; read only."""
    return SMALL_CHECKPOINT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what `pip` would install of the wheel."""
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(built), str(Path(__file__).parents[1])], check=True, capture_output=True)
    (archive,) = built.glob("*.whl")
    installed = built / "installed"
    with zipfile.ZipFile(archive) as files:
        files.extractall(installed)
    return installed


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests."""
    binaries = find_binaries()
    if binaries is None:
        assert "CI" not in os.environ, "PostgreSQL is not installed; in CI nothing is left out: apt install postgresql"
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    server = Postgres(binaries)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty ledger; every test that asks for it runs on both databases."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.new_database()
    yield url
    server.drop_database(url)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of this module's own."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()
