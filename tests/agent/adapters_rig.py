"""Adapters that vLLM loads itself, beside a trainer's: `python -m tests.agent.adapters_rig DIRECTORY`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from omni_rl import runtime, torchvision_schemas
from omni_rl.agent.trainer import adapters
from tests.agent.plain import plain_weights
from tests.agent.rig import Rig
from tests.agent.tiny import SIZES

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
    """What PEFT makes of the attention of the rig's model."""

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


class Adapters:
    """An engine whose adapters change from update to update, beside the base that stays."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rig = Rig("qwen2", torch.float32, root / "model", **LORA)

    def step(
        self,
        name: str,
        policy: Policy,
        served: Policy,
        adapter: str = "policy",
        scale: float = 1.0,
        first: bool = False,
    ) -> None:
        """An update of the trainer's adapter, of which the engine gets `served`, under a name and with a scale; empty:
        it gets none. `first`: it is added before a request asks for it."""
        from vllm.lora.request import LoRARequest

        engine = self.rig.llm.llm_engine
        for loaded in engine.list_loras():
            engine.remove_lora(loaded)
        self.rig.announce(adapters(policy))
        request = None
        if adapter:
            request = LoRARequest(adapter, self.rig.number, str(served.save(self.root / name, scale)))
            if first:
                engine.add_lora(request)
        self.rig.reset()
        self.rig.generate(lora_request=request)
        sys.stdout.write(json.dumps([name, self.rig.told()]) + "\n")


def main() -> None:
    plain_weights()
    one, two, three, four, five = (Policy(seed) for seed in range(5))
    engine = Adapters(Path(sys.argv[1]))
    engine.step("clean", one, one)
    engine.step("another", two, two)
    engine.step("added", one, one, first=True)
    engine.step("older", three, two)
    engine.step("not_loaded", three, three, adapter="")
    engine.step("other_name", four, four, adapter="reference")
    engine.step("scale_0", five, five, scale=0.0)
    engine.step("other_scale", five, five, scale=0.5)
    engine.step("again", five, five)


if __name__ == "__main__":
    runtime.prepare()
    torchvision_schemas.install()
    main()
