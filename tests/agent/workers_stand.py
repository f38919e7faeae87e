"""Two tensor-parallel workers that the agent looks into: `python -m tests.agent.workers_stand DIRECTORY`.

The workers are forked: they inherit what this process has patched, and with it the agent's seat.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from omni_rl import runtime, torchvision_schemas
from tests.agent.stand import Stand, plain_weights

PATIENCE = 60.0


def load(worker: Any, file: str, but: int) -> None:
    """Load a file's weights, in every worker but one."""
    from safetensors.torch import load_file

    if worker.rank != but:
        worker.get_model().load_weights(load_file(file).items())


def main() -> None:
    from safetensors.torch import save_file

    from omni_rl.agent.bodies import announcement
    from omni_rl.agent.trainer import fingerprints
    from omni_rl.client import Client

    root = Path(sys.argv[1])
    plain_weights()
    stand = Stand("qwen2", torch.float32, root / "model", tensor_parallel_size=2)
    run = os.environ["OMNI_RL_RUN"]
    with Client(os.environ["OMNI_RL_AGENT"]) as client:
        for number, (name, but) in enumerate((("clean", -1), ("stale", 1), ("again", -1)), 1):
            stand.number = number
            stand.learn()
            file = root / f"{name}.safetensors"
            save_file(stand.weights(), file)
            client.announce_update(run, number, announcement(fingerprints(stand.trainer)))
            stand.llm.collective_rpc(load, args=(str(file), but))
            stand.llm.reset_prefix_cache()
            stand.generate()
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                told = next((one for one in client.updates(run, 8) if one.engine and one.of == number), None)
                if told is not None and told.reported == 2 and (told.equal or told.findings):
                    sys.stdout.write(json.dumps([name, told.model_dump()]) + "\n")
                    break
                time.sleep(0.1)


if __name__ == "__main__":
    runtime.prepare()
    torchvision_schemas.install()
    main()
