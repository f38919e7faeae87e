"""The examples: what users write down leads to what it is to load, is no more than was promised, and is taken."""

import ast
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from omni_rl.watch.verl_config import VerlRun
from tools import frameworks

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_trls_two_lines() -> None:
    tree = ast.parse((EXAMPLES / "trl_grpo.py").read_text())
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    lines = [ast.unparse(node) for node in (*tree.body, *function.body) if not isinstance(node, ast.FunctionDef)]
    assert [line for line in lines[1:] if "watch" in line] == [
        "from omni_rl.watch.trl import watch",
        "watch(trainer)",
    ]


@pytest.mark.parametrize("name", ["verl-grpo.sh", "nemo-rl.sh"])
def test_no_line_of_a_run_of_verl_or_nemo_rl(name: str) -> None:
    """verl's command has nothing of ours; for NeMo RL the only command is ours, and it is beside the run."""
    commands = (EXAMPLES / name).read_text().partition("set -euo pipefail")[2].partition("\n\n")[2]
    assert ("omni" in commands, commands.startswith("omni-rl watch")) == (name == "nemo-rl.sh",) * 2


def loaded(path: str) -> Callable[..., Any]:
    """As these frameworks load it: the last dot parts the module from the name."""
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def test_prime_rls_two_lines() -> None:
    loss = tomllib.loads((EXAMPLES / "prime-rl.toml").read_text())["trainer"]["loss"]
    assert loss.keys() == {"type", "import_path"}
    assert next(iter(inspect.signature(loaded(loss["import_path"])).parameters)) == "inputs"


def test_the_function_of_miles_and_slime() -> None:
    (path,) = re.findall(r"--custom-tis-function-path (\S+)", (EXAMPLES / "miles-slime.sh").read_text())
    handed = {"args", "pg_loss", "train_log_probs", "rollout_log_probs", "loss_masks"}
    assert handed < inspect.signature(loaded(path)).parameters.keys()


def test_what_miless_job_is_submitted_with(tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    ray.chmod(0o755)
    told = {"OMNI_RL_URL": "http://here:8400", "OMNI_RL_TOKEN_FILE": "/a token", "OMNI_RL_RUN": "mine"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(EXAMPLES / "miles-slime.sh"), "train.py", "--lr", "1"]
    done = subprocess.run(command, env=environment | told, capture_output=True, text=True)
    *asked, _ = done.stdout.split("\n")
    assert json.loads(asked[asked.index("--runtime-env-json") + 1])["env_vars"] == told
    assert asked[asked.index("--") + 1 :][:4] == ["python3", "train.py", "--lr", "1"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "the address that omni-rl serve printed" in refused.stderr


@pytest.mark.slow
def test_released_verl_takes_the_examples_configuration(tmp_path: Path) -> None:
    """`--cfg job` has verl's own entry point check every setting, and print them all, in place of the training."""
    shim = tmp_path / "python"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(str(frameworks.python("verl")))} "$@"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OMNI_RL_URL": "http://127.0.0.1:9"}
    command = ["bash", str(EXAMPLES / "verl-grpo.sh"), "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    run = VerlRun.of(yaml.safe_load(done.stdout))
    assert run is not None
    assert (run.name, run.obstacle) == ("examples.gsm8k", "")
