"""Starts a rig in a process of its own, beside a coordinator that its agent and its trainer tell of updates."""

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from omni_rl import runtime
from omni_rl.api.runs import RunBody
from omni_rl.client import Client
from tests.nursery import Forked, call_main, said_by, started
from tests.services.live import live

ROOT = Path(__file__).parents[2]
IMPORTED = ("omni_rl.torchvision_schemas:install", "vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker")
RIGS = ("tests.agent.rig", "tests.agent.adapters_rig", "tests.agent.entrances_rig", "tests.agent.workers_rig")


def vllm_nursery() -> AbstractContextManager[str]:
    """A nursery whose processes have imported what a rig imports."""
    return started(*IMPORTED, *RIGS, environment=os.environ | runtime.variables())


def told(nursery: str, tmp_path: Path, rig: str, *arguments: str, **environment: str) -> dict[str, dict[str, Any]]:
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
        log = tmp_path / "rig.log"
        said = said_by(Forked(nursery, log, call_main, rig, [str(tmp_path), *arguments], variables), log)
    return dict(json.loads(line) for line in said.splitlines() if line.startswith('["'))
