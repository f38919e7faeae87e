"""Starts a rig in a process of its own, beside a coordinator that its agent and its trainer tell of updates."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from omni_rl import runtime
from omni_rl.api.runs import RunBody
from omni_rl.client import Client
from tests.services.live import live

ROOT = Path(__file__).parents[2]


def told(tmp_path: Path, rig: str, *arguments: str, **environment: str) -> dict[str, dict[str, Any]]:
    """By name of each update that a rig makes: what the coordinator said of it."""
    # vLLM inspects models, and runs workers, in processes of its own, which import torchvision first of all.
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("from omni_rl import torchvision_schemas\ntorchvision_schemas.install()\n")
    with live(tmp_path) as url:
        with Client(url) as client:
            client.create_run(RunBody(run="agent", model="tiny", dtype="float32", framework="test"))
        variables = {
            **os.environ,
            **runtime.variables(),
            "OMNI_RL_AGENT": url,
            "OMNI_RL_RUN": "agent",
            "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))),
            **environment,
        }
        command = [sys.executable, "-m", rig, str(tmp_path), *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
