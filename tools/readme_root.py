"""Runs the README's commands, in their order, in an empty Debian root.

`sudo python -m tools.readme_root DIRECTORY` makes a root with debootstrap that has Python, make, a C compiler and
libnuma and nothing else, puts the checkout's last commit there, and gives every command of README.md to a shell of a
user who is not root. A command that goes on until Ctrl-C gets one once it has printed that it waits for it. It exits
with the status of the first command that fails. Needs root, debootstrap, 12 GB of disk, and half an hour. Settings of
pip for this machine (a mirror) go in as pip's own environment variables, and a folder of wheels with `--mount`.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tools.clean_root import HOST, PYTHON, ROOT, SUITE, Stage, mounts, say

PACKAGES = f"{PYTHON},make,gcc,libc6-dev,python3-dev,libnuma1"
USER = "reader"
CHECKOUT = Path("/home", USER, "omni-rl")
GOES_ON = ("omni-rl serve", "make demo ARGS=--serve")
"""The commands of the README that run until they are interrupted."""
INTERRUPTED = 130
"""What a shell reports of a command that ended with Ctrl-C."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--mount", type=Path, action="append", default=[], help="a folder of this machine to show there"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    root = arguments.directory.resolve()
    say(f"a root of {SUITE} with {PACKAGES}")
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)], check=True)
    subprocess.run(["chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", USER], check=True)
    checkout = root / CHECKOUT.relative_to("/")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(checkout)], check=True)
    (checkout / "readme.sh").write_text(script(commands((checkout / "README.md").read_text())))
    subprocess.run(["chroot", root, "chown", "-R", f"{USER}:{USER}", str(CHECKOUT)], check=True)
    with mounts(root, [*map(Path, ("/proc", "/sys", "/dev/shm")), *arguments.mount]):
        for file in HOST:
            shutil.copy(file, root / file.lstrip("/"))
        reader = Stage(root, directory=str(CHECKOUT))
        reader.environment["HOME"] = f"/home/{USER}"
        try:
            reader.run("exec bash readme.sh", USER)
        except subprocess.CalledProcessError as error:
            status = error.returncode
        else:
            status = 0
    say(f"ended with {status} after {time.monotonic() - began:.0f} s")
    return status


def commands(text: str) -> list[str]:
    """Return the lines of the shell blocks of a Markdown text, without their comments."""
    lines = "\n".join(re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line) for line in lines) if line]


def script(lines: list[str]) -> str:
    """Return a script of bash that carries these commands out and stops at the first that fails."""
    # Without job control, bash starts what runs in the background deaf to Ctrl-C.
    parts = ["set -em", "python3 -m venv ~/run", ". ~/run/bin/activate"]
    for line in lines:
        parts.append(f"echo; echo '$ {line}'")
        if line in GOES_ON:
            parts += [
                f"{line} > said.txt 2>&1 & running=$!",
                "until grep -q Ctrl-C said.txt; do kill -0 $running || { cat said.txt; exit 1; }; sleep 1; done",
                "cat said.txt; sleep 5; status=0; kill -INT -$running; wait $running || status=$?",
                f'[ $status = 0 ] || [ $status = {INTERRUPTED} ] || {{ echo "ended with $status"; exit 1; }}',
            ]
        else:
            parts.append(line)
    return "\n".join([*parts, ""])


if __name__ == "__main__":
    sys.exit(main())
