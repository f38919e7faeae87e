"""Adapters that vLLM loads itself, beside a trainer's: `python -m tests.agent.adapters_stand DIRECTORY`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from omni_rl import runtime, torchvision_schemas
from tests.agent.stand import SIZES, Stand, plain_weights

RANK, ALPHA = 4, 8
TARGETS = ("q_proj", "o_proj")
LORA: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2, "lora_target_modules": list(TARGETS)}


class Adapted(nn.Module):
    """A linear with a LoRA adapter, named as PEFT names its parts."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        width = SIZES["hidden_size"]
        self.r = {"policy": RANK}
        self.scaling = {"policy": ALPHA / RANK}
        self.lora_A = nn.ModuleDict({"policy": nn.Linear(width, RANK, bias=False)})
        self.lora_B = nn.ModuleDict({"policy": nn.Linear(RANK, width, bias=False)})
        for side in (self.lora_A, self.lora_B):
            weight: Any = side["policy"].weight
            weight.data = torch.randn(weight.shape, generator=generator)


class Policy(nn.Module):
    """What PEFT makes of the attention of the stand's model."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        layers = [
            nn.ModuleDict({"self_attn": nn.ModuleDict({name: Adapted(9 * seed + n) for n, name in enumerate(TARGETS)})})
            for _ in range(SIZES["num_hidden_layers"])
        ]
        self.layers = nn.ModuleList(layers)

    def save(self, directory: Path, scale: float = 1.0) -> Path:
        """Write the adapter as PEFT does, with its scale times `scale`."""
        directory.mkdir()
        tensors = {
            f"base_model.model.model.{path}.{side}.weight": getattr(module, side)["policy"].weight.detach().contiguous()
            for path, module in self.named_modules()
            if isinstance(module, Adapted)
            for side in ("lora_A", "lora_B")
        }
        save_file(tensors, directory / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA * scale, "target_modules": list(TARGETS)}
        (directory / "adapter_config.json").write_text(json.dumps({**config, "bias": "none"}))
        return directory


def main() -> None:
    from vllm.lora.request import LoRARequest

    from omni_rl.agent import announced
    from omni_rl.agent.bodies import announcement
    from omni_rl.agent.install import flush
    from omni_rl.agent.trainer import adapters, fingerprints
    from omni_rl.client import Client

    root = Path(sys.argv[1])
    plain_weights()
    stand = Stand("qwen2", torch.float32, root / "model", **LORA)
    run, url = os.environ["OMNI_RL_RUN"], os.environ["OMNI_RL_AGENT"]
    base = fingerprints(stand.trainer)
    number = 0

    def step(name: str, policy: Policy, served: Policy, adapter: str = "policy", scale: float = 1.0) -> None:
        nonlocal number
        number += 1
        engine = stand.llm.llm_engine
        for loaded in engine.list_loras():
            engine.remove_lora(loaded)
        with Client(url) as client:
            client.announce_update(run, number, announcement(base, adapters(policy)))
            announced.announce(number)
            request = None
            if adapter:
                request = LoRARequest(adapter, number, str(served.save(root / name, scale)))
            stand.llm.reset_prefix_cache()
            stand.generate(lora_request=request)
            assert flush(30)
            told = next(one for one in client.updates(run, 4) if one.engine is not None)
        sys.stdout.write(json.dumps([name, told.model_dump()]) + "\n")

    one, two, three, four, five = (Policy(seed) for seed in range(5))
    step("clean", one, one)
    step("another", two, two)
    step("older", three, two)
    step("not_loaded", three, three, adapter="")
    step("other_name", four, four, adapter="reference")
    step("scale_0", five, five, scale=0.0)
    step("other_scale", five, five, scale=0.5)
    step("again", five, five)


if __name__ == "__main__":
    runtime.prepare()
    torchvision_schemas.install()
    main()
