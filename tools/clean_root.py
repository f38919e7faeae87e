"""Performs a stage of the Dockerfile in a fresh Debian root, without a container engine, and runs a command there.

`sudo python tools/clean_root.py DIRECTORY` makes a root with debootstrap and a copy of it for each stage that the CPU
image is made of, carries out their instructions in chroot, and runs checks in the result as the image's user. Needs
root, debootstrap, 9 GB of disk, and some ten minutes. Settings of pip for this machine (a mirror) go in as pip's own
environment variables, and a folder of wheels with `--mount`. The base image is Debian's Python of the same minor
version: a container engine would take the official image's.

With `--light` it carries out no stage: it installs the wheel of `make wheel` with pip, as a user would who has Python
alone, and serves, posts, watches and judges there (a minute, 1 GB).
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
TARGET = "cpu"
SUITE, BASE = "bookworm", "base"
PYTHON = "python3,python3-venv,python-is-python3,ca-certificates"
"""The Debian packages that the base image has."""
SERVE = """
echo '{"port": 8491, "ledger": "sqlite:////tmp/ledger.db", "media": {"directory": "/tmp/media"}}' > /tmp/settings.json
python -m omni_rl_services.coordinator /tmp/settings.json & server=$!
for _ in $(seq 60); do
    sleep 1
    python -m omni_rl.service.probe http://127.0.0.1:8491/healthz && kill $server && exit 0
done
exit 1
"""
"""A script that starts the coordinator alone and asks it for an answer."""
CHECKS = ("omni-rl --version", "omni-rl doctor", "python -c 'import torch, vllm, ray'", SERVE)
LIGHT = (
    "python -m venv /opt/alone && /opt/alone/bin/pip install --quiet /opt/light/*.whl",
    "mkdir -p /tmp/light && cd /tmp/light && PYTHONPATH=/opt/light /opt/alone/bin/python -c 'from pathlib import Path; "
    'from dumps import clean_answers, dump; [dump(Path("."), step, clean_answers(step)) for step in (1, 2)]\'',
    "cd /tmp && /opt/alone/bin/python /opt/light/light_session.py /opt/light/examples /tmp/light",
    "du -sm /opt/alone",
)
"""The commands that run after the wheel, the examples and the session of the tests are in /opt/light."""
HOST = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")


@dataclass
class Stage:
    """A stage of the image: its root, and what its instructions have set so far."""

    root: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    )
    directory: str = "/"
    user: str = "0"
    entrypoint: str = ""

    def run(self, command: str, user: str = "0") -> None:
        variables = {
            **self.environment,
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
        }
        inside = f"cd {self.directory} && {command}"
        start = ["chroot", f"--userspec={user}:{user}", str(self.root), "/bin/sh", "-ec", inside]
        subprocess.run(start, env=variables, check=True)

    def path(self, inside: str) -> Path:
        return self.root / str(Path(self.directory) / inside).lstrip("/")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--mount", type=Path, action="append", default=[], help="a folder of this machine to show there"
    )
    parser.add_argument("--light", action="store_true", help="the wheel alone, in place of the image")
    parser.add_argument("--run", action="append", help="a command to run in the end, as the image's user")
    arguments = parser.parse_args()
    began = time.monotonic()
    stages: dict[str, Stage] = {}
    directory = arguments.directory.resolve()
    say(f"a root of {SUITE}")
    debootstrap = ["debootstrap", "--variant=minbase", f"--include={PYTHON}", SUITE, str(directory / BASE)]
    subprocess.run(debootstrap, check=True)
    if arguments.light:
        light(directory / BASE, arguments.mount)
        say(f"done in {time.monotonic() - began:.0f} s")
        return 0
    with contextlib.ExitStack() as mounted:
        for name, lines in needed(instructions(DOCKERFILE.read_text()), TARGET).items():
            root = directory / name
            subprocess.run(["cp", "--archive", str(directory / BASE), str(root)], check=True)
            stages[name] = stage = Stage(root)
            mounted.enter_context(mounts(root, [Path("/proc"), Path("/dev/shm"), *arguments.mount]))
            for file in HOST:
                shutil.copy(file, root / file.lstrip("/"))
            for line in lines:
                say(f"{name}: {line}")
                perform(stage, line, stages)
        for command in arguments.run or CHECKS:
            say(f"{TARGET}, as user {stage.user}: {stage.entrypoint} {command}")
            stage.run(f"{stage.entrypoint} sh -c {shlex.quote(command)}", stage.user)
    say(f"done in {time.monotonic() - began:.0f} s")
    return 0


def light(root: Path, folders: Sequence[Path]) -> None:
    """Install the wheel where there is Python alone, and use it. Raises `CalledProcessError` for what fails."""
    with mounts(root, [Path("/proc"), Path("/dev/shm"), *folders]):
        for file in HOST:
            shutil.copy(file, root / file.lstrip("/"))
        (wheel,) = (ROOT / "dist").glob("omni_rl-*.whl")
        into = root / "opt/light"
        into.mkdir(parents=True)
        tests = ROOT / "tests"
        for source in (wheel, tests / "packaging/light_session.py"):
            shutil.copy(source, into)
        shutil.copytree(ROOT / "examples", into / "examples")
        shutil.copy(tests / "watch/nemo_rl.py", into / "dumps.py")
        for command in LIGHT:
            say(command)
            Stage(root).run(command)


def instructions(text: str) -> list[str]:
    """Return the instructions without comments, each on one line."""
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [line for line in re.sub(r"\\\n\s*", " ", kept).splitlines() if line]


def needed(lines: Sequence[str], target: str) -> dict[str, list[str]]:
    """Return the instructions of the stages that `target` copies from, and its own, by name."""
    stages: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("FROM "):
            stages[line.split(" AS ")[1]] = []
        elif stages:
            stages[list(stages)[-1]].append(line)
    sources = [found[1] for line in stages[target] if (found := re.match(r"COPY --from=(\S+)", line))]
    return {name: stages[name] for name in [*dict.fromkeys(sources), target]}


def perform(stage: Stage, line: str, stages: Mapping[str, Stage]) -> None:
    """Carry out one instruction. Raises `ValueError` for a kind that it does not know."""
    kind, _, rest = line.partition(" ")
    if kind == "ENV":
        for name, value in (item.split("=", 1) for item in shlex.split(rest)):
            stage.environment[name] = value.replace("$PATH", stage.environment["PATH"])
    elif kind == "WORKDIR":
        stage.directory = rest
        stage.path(".").mkdir(parents=True, exist_ok=True)
    elif kind == "COPY":
        words = rest.split()
        source = stages[words.pop(0).removeprefix("--from=")].root if words[0].startswith("--from=") else ROOT
        for name in words[:-1]:
            copy(source / name.lstrip("/"), stage.path(words[-1]), into=words[-1].endswith("/"))
    elif kind == "RUN":
        stage.run(rest)
    elif kind == "USER":
        stage.user = rest
    elif kind == "ENTRYPOINT":
        stage.entrypoint = shlex.join(shlex.split(rest.strip("[]").replace(",", " ")))
    elif kind != "CMD":
        raise ValueError(f"{kind} is not known here: {line}")


def copy(source: Path, target: Path, *, into: bool) -> None:
    """Copy as COPY does: a folder's content into a folder, a file to a name or into a folder."""
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=ignored)
    else:
        target = target / source.name if into else target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


@contextlib.contextmanager
def mounts(root: Path, folders: Sequence[Path]) -> Iterator[None]:
    """Show folders of this machine at the same paths inside."""
    with contextlib.ExitStack() as stack:
        for folder in folders:
            inside = root / str(folder).lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", str(folder), str(inside)], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(inside)], check=True)
        yield


def say(line: str) -> None:
    sys.stdout.write(f"-- {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
