"""What somebody does who has just installed the wheel: serve, post, watch and judge; run by that installation's Python.

    python light_session.py EXAMPLE DUMPS

`EXAMPLE` is examples/post_numpy.py, `DUMPS` a directory of NeMo RL's files. Prints a word for
each thing that went well.
The standard library alone, and what the wheel installs.
"""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

OMNI_RL = [sys.executable, "-m", "omni_rl"]


def main(example: str, dumps: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    serve = [*OMNI_RL, "serve", "--port", "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            said = next(line for line in server.stdout if "OMNI_RL_URL=" in line)
            environment |= dict(word.split("=", 1) for word in said.split() if word.startswith("OMNI_RL_"))
            with urllib.request.urlopen(f"{environment['OMNI_RL_URL']}/readyz") as answer:
                assert answer.status == 200
            say("ready")
            for name, command in {
                "posted": [sys.executable, example, "--steps", "2", "--drift", "0"],
                "watched": [*OMNI_RL, "watch", "nemo-rl", dumps, "--dtype", "float32", "--once"],
                "judged": [*OMNI_RL, "judge", dumps, "--dtype", "float32"],
            }.items():
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr
                assert " ok " in done.stdout, done.stdout
                say(name)
        finally:
            server.terminate()
    assert Path("runs/serve/ledger.db").is_file()


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
