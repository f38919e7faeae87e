"""Two tensor-parallel workers that the agent looks into: `python -m tests.agent.workers_rig DIRECTORY`."""

import json
import os
import sys
import time
from pathlib import Path

import torch

from omni_rl import runtime, torchvision_schemas
from omni_rl.client import Client
from tests.agent.rig import Rig

PATIENCE = 60.0
STEPS = (("clean", -1), ("stale", 1), ("again", -1))
"""Names of updates, and the worker that does not take each."""


def main() -> None:
    from safetensors.torch import save_file

    root = Path(sys.argv[1])
    options = {"tensor_parallel_size": 2, "worker_extension_cls": "tests.agent.extension.Extension"}
    rig = Rig("qwen2_grouped", torch.float32, root / "model", **options)
    for name, but in STEPS:
        rig.learn()
        file = str(root / f"{name}.safetensors")
        save_file(rig.tiny.tensors(), file)
        rig.announce()
        rig.llm.collective_rpc("take_weights", args=(file, but))
        rig.reset()
        rig.generate()
        sys.stdout.write(json.dumps([name, wait_for(rig.number)]) + "\n")


def wait_for(number: int) -> dict[str, object]:
    """What the coordinator says of the trainer's update, once both workers have told of it."""
    deadline = time.monotonic() + PATIENCE
    with Client(os.environ["OMNI_RL_AGENT"]) as client:
        while True:
            newest = client.updates(os.environ["OMNI_RL_RUN"], 8)
            told = next((one for one in newest if one.engine and one.of == number), None)
            if told is not None and told.reported == 2 and (told.equal or told.findings):
                return told.model_dump()
            if time.monotonic() > deadline:
                raise TimeoutError(f"update {number}: {[one.model_dump() for one in newest]}")
            time.sleep(0.1)


if __name__ == "__main__":
    runtime.prepare()
    torchvision_schemas.install()
    main()
