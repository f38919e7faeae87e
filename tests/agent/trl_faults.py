"""A real TRL run on the CPU whose weight updates go wrong one after another, as the agent and the trainer see them.

    python tests/agent/trl_faults.py '{"model": DIRECTORY, "output": DIRECTORY, "lora": true}'
in TRL's own environment, with OMNI_RL_AGENT and OMNI_RL_RUN set.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import trl.generation.vllm_generation as colocated
import vllm
from peft import LoraConfig
from trl import GRPOTrainer

import tests.watch.trl_run as run
from omni_rl.agent.install import flush
from omni_rl.watch.trl import watch

Weights = Iterable[tuple[str, torch.Tensor]]
FAULTS: dict[int, tuple[str, Callable[[str, torch.Tensor], torch.Tensor | None]]] = {
    2: ("one_layer", lambda name, value: None if "layers.1." in name else value),
    4: ("one_tensor", lambda name, value: None if "layers.0.self_attn.o_proj" in name else value),
    6: ("zeroed", lambda name, value: torch.zeros_like(value) if name.endswith("model.norm.weight") else value),
}
"""By the trainer's step: what becomes of each tensor on its way to the engine; None: it does not arrive."""
NEVER = 8
"""The step at which weights are not sent at all."""


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    run.plain_linears()
    colocated.LLM = lambda **settings: vllm.LLM(enforce_eager=True, dtype="float32", **settings)
    if options["lora"]:
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "down_proj"], task_type="CAUSAL_LM")
        vars(run)["GRPOTrainer"] = functools.partial(GRPOTrainer, peft_config=lora)
    trainer = run.make_trainer({"trainer": "grpo", **options})
    watch(trainer)
    spoil(trainer)
    trainer.train()
    assert flush(30)
    (Path(options["output"]) / "log.json").write_text(json.dumps(trainer.state.log_history))


def spoil(trainer: Any) -> None:
    """Put the faults between the trainer and its engine."""
    model = trainer.vllm_generation.llm.llm_engine.model_executor.driver_worker.model_runner.model
    load = model.load_weights

    def loads(weights: Weights) -> Any:
        _, fault = FAULTS.get(trainer.state.global_step, ("", lambda name, value: value))
        kept = [(name, fault(name, value)) for name, value in weights]
        return load([(name, value) for name, value in kept if value is not None])

    model.load_weights = loads
    run.from_step(trainer, NEVER, trainer.vllm_generation, "sync_weights", lambda inner: None)


if __name__ == "__main__":
    main()
