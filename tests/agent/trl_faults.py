"""A real TRL run on the CPU whose weight updates go wrong one after another, as the agent and the trainer see them.

    python -m tests.agent.trl_faults '{"kind": "lora", "model": DIRECTORY, "output": DIRECTORY}'
in TRL's own environment, with OMNI_RL_AGENT and OMNI_RL_RUN set. Of the trainer's steps the odd ones go wrong, each in
the way of a fault of its kind.
"""

import functools
import json
import sys
from typing import Any

import trl.generation.vllm_generation as colocated
import vllm
from peft import LoraConfig
from trl import GRPOTrainer

import tests.watch.trl_run as run
from omni_rl.agent.install import flush
from omni_rl.watch.trl import watch
from tests.agent.faults import IN_TRL, Fault, whole
from tests.agent.plain import plain_weights
from tests.agent.tiny import Tensors
from tests.agent.trl_steps import fault_at, steps


class Engine:
    """The trainer's engine. Weights are brought to it as TRL does: one call a tensor."""

    def __init__(self, llm: Any) -> None:
        driver = llm.llm_engine.model_executor.driver_worker
        self.worker = driver.worker
        self.model = driver.model_runner.model
        self.first: Tensors = {}
        self._load = self.model.load_weights

    def load(self, weights: Tensors) -> None:
        for name, value in weights.items():
            self._load([(name, value)])


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    faults = IN_TRL[options["kind"]]
    run.plain_linears()
    plain_weights()
    colocated.LLM = lambda **settings: vllm.LLM(enforce_eager=True, dtype="float32", **settings)
    if options["kind"] == "lora":
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "down_proj"], task_type="CAUSAL_LM")
        vars(run)["GRPOTrainer"] = functools.partial(GRPOTrainer, peft_config=lora)
    settings = {"max_steps": steps(faults), "learning_rate": 1e-2, "max_completion_length": 16}
    trainer = run.make_trainer({"trainer": "grpo", "settings": settings, **options})
    watch(trainer)
    spoil(trainer, list(faults.values()))
    trainer.train()
    assert flush(30)


def spoil(trainer: Any, faults: list[Fault]) -> None:
    """Put the faults between the trainer and its engine."""
    generation = trainer.vllm_generation
    engine, sync, reset = Engine(generation.llm), generation.sync_weights, generation.llm.reset_prefix_cache
    before: Tensors = {}
    sent: Tensors = {}
    # Tensors that are merged for the way, as PEFT's are, are gone once they are sent.
    engine.model.load_weights = lambda weights: sent.update((name, value.detach().clone()) for name, value in weights)

    def sync_weights() -> None:
        nonlocal before
        fault = fault_at(trainer.state.global_step, faults)
        generation.llm.reset_prefix_cache = (lambda: None) if fault is not None and fault.keeps == "prefix" else reset
        sent.clear()
        sync()
        engine.first = engine.first or dict(sent)
        (whole if fault is None else fault.send)(engine, before, dict(sent))
        before = dict(sent)

    generation.sync_weights = sync_weights


if __name__ == "__main__":
    main()
