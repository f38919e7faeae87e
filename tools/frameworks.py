"""Makes environments with released frameworks beside the project's own, for the tests of what watches their runs.

    python tools/frameworks.py trl verl

prints the Python of each; `mutants` is Cosmic Ray's, for tools/mutants.py. An environment holds what the framework's
lock names, without what those packages ask for: torch, vLLM, transformers and this package come from the project's
environment, which is the one that runs this. It is made once, in `.frameworks/` or where OMNI_RL_FRAMEWORKS says, and
again when its lock or the project's changes.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
KNOWN = ("trl", "verl", "nemo_automodel", "mutants")
HOME = Path(os.environ.get("OMNI_RL_FRAMEWORKS", ROOT / ".frameworks"))


class FrameworkError(Exception):
    """An environment could not be made; the message says why."""


def python(framework: str) -> Path:
    """Return the Python of a framework's environment, which is made first where it is not there.

    Raises:
        FrameworkError: the packages could not be had.
    """
    lock = LOCKS / f"{framework}.lock"
    project = sysconfig.get_paths()["purelib"]
    digest = hashlib.sha256(f"{sys.version}\n{project}\n{lock.read_text()}".encode())
    directory = HOME / f"{framework}-{digest.hexdigest()[:12]}"
    HOME.mkdir(parents=True, exist_ok=True)
    # Tests in several processes want the environment at once; the first makes it.
    with (HOME / f"{framework}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (directory / "ready").exists():
            shutil.rmtree(directory, ignore_errors=True)
            _make(directory, lock, project)
    return directory / "bin" / "python"


def _make(directory: Path, lock: Path, project: str) -> None:
    venv.create(directory, with_pip=False, symlinks=True)
    packages = _packages(directory)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--no-deps", "--require-hashes"]
    # Installed into a directory of its own: pip would take what the project's environment has for installed.
    done = subprocess.run([*command, "--target", str(packages), "-r", str(lock)], capture_output=True, text=True)
    if done.returncode:
        raise FrameworkError(f"the packages of {lock} could not be installed:\n{done.stderr[-2000:]}")
    # Some wheels hold a package `tests` of their own, which would hide the checkout's.
    shutil.rmtree(packages / "tests", ignore_errors=True)
    # The project's packages come behind the framework's own; a plain path would leave out their `.pth` files.
    (packages / "project.pth").write_text(f"import site; site.addsitedir({project!r})\n")
    # Every process that a vLLM starts imports torchvision, whose PyPI build needs its schemas before.
    schemas = (ROOT / "omni_rl" / "torchvision_schemas.py").read_text()
    (packages / "sitecustomize.py").write_text(f"{schemas}\n\ninstall()\n")
    (directory / "ready").touch()


def _packages(directory: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(directory), "platbase": str(directory)}))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("framework", nargs="+", choices=KNOWN)
    try:
        for framework in options.parse_args().framework:
            print(python(framework))
    except FrameworkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
