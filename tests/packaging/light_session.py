"""What somebody does who has just installed the wheel: serve, post, watch and judge; run by that installation's Python.

    python light_session.py EXAMPLES DUMPS

`EXAMPLES` is a checkout's examples/, `DUMPS` a directory of NeMo RL's files. Prints a word for each thing that went
well. It needs the standard library alone, and what the wheel installs.
"""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

OMNI_RL = [sys.executable, "-m", "omni_rl"]
STEP = """
from omni_rl import watch

row = [-1.0] * 32
watch.step(rollout_logprobs=[row] * 8, train_logprobs=[row] * 8)
"""
"""A trainer of one step, by the one line that the documentation promises."""


def main(examples: str, dumps: str) -> None:
    installed = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    example = f"{examples}/post_numpy.py"
    environment = {**os.environ, "PATH": installed, "PYTHONUNBUFFERED": "1"}
    serve = [*OMNI_RL, "serve", "--port", "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            said = next(line for line in server.stdout if "OMNI_RL_URL=" in line)
            environment |= dict(word.split("=", 1) for word in said.split() if word.startswith("OMNI_RL_"))
            with urllib.request.urlopen(f"{environment['OMNI_RL_URL']}/readyz") as answer:
                assert answer.status == 200
            say("ready")
            for name, command, expected in (
                ("posted", [sys.executable, example, "--steps", "2", "--drift", "0"], "step 1: ok "),
                ("stepped", [sys.executable, "-c", STEP], ""),
                ("told", [*OMNI_RL, "status"], "run        run  ok"),
                ("watched", ["bash", f"{examples}/nemo-rl.sh", dumps, "--dtype", "float32", "--once"], " ok "),
                ("judged", [*OMNI_RL, "judge", dumps, "--dtype", "float32"], " ok "),
            ):
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr
                assert expected in done.stdout, done.stdout + done.stderr
                say(name)
        finally:
            server.terminate()
    assert Path("runs/serve/ledger.db").is_file()


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
