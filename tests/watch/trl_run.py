"""A real TRL run on the CPU, as a user writes it: `watch(trainer)`, then `trainer.train()`.

Run by the interpreter of TRL's own environment (tools/frameworks.py), in one process or as the ranks of `torchrun`:
    python tests/watch/trl_run.py '{"model": DIRECTORY, "output": DIRECTORY, "fault": "stale"}'
The first process writes the trainer's own log to log.json in the output directory.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl.generation.vllm_generation as colocated
import trl.trainer.grpo_trainer as grpo
import vllm
import vllm.model_executor.layers.linear as linear
import vllm.model_executor.layers.utils as utils
import vllm.model_executor.layers.vocab_parallel_embedding as embedding
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.generation.vllm_client import VLLMClient

from omni_rl.watch.trl import watch
from tests.watch.trl_costs import Costs
from tests.watch.trl_pictures import picture
from tests.watch.trl_server import send_weights_by_files

TURN = 16
"""Tokens of an answer's turn before a tool is called."""


def main() -> None:
    options: dict[str, Any] = {"dtype": "float32", "fault": None, "trainer": "grpo", **json.loads(sys.argv[1])}
    engine_on_the_cpu(options["dtype"])
    if server := options.get("server"):
        send_weights_by_files(VLLMClient, Path(server["directory"]))
        remote = {"vllm_mode": "server", "vllm_server_base_url": server["url"]}
        options["settings"] = {**options.get("settings", {}), **remote}
    trainer = make_trainer(options)
    costs = Costs()
    if options.get("costs"):
        costs.install()
    watch(trainer, **options.get("watch", {}))
    if (fault := options["fault"]) is not None:
        FAULTS[fault](trainer, options.get("at", 0))
    trainer.train()
    if trainer.accelerator.is_main_process:
        (Path(options["output"]) / "log.json").write_text(json.dumps(trainer.state.log_history))
    if options.get("costs"):
        costs.write(Path(options["output"]) / "costs.json")


def engine_on_the_cpu(dtype: str) -> None:
    """Have TRL start engines of that dtype as they run on a CPU."""
    plain_linears()
    # TRL passes no dtype to its engine, which then takes the checkpoint's.
    colocated.LLM = lambda **settings: vllm.LLM(enforce_eager=True, dtype=dtype, skip_mm_profiling=True, **settings)


def plain_linears() -> None:
    """Without packing, so that weights that are loaded in place reach what computes, as they do on a GPU."""

    def plain(layer: Any, remove_weight: bool = False, **_: Any) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    for module in (utils, linear, embedding):
        if hasattr(module, "dispatch_cpu_unquantized_gemm"):
            module.dispatch_cpu_unquantized_gemm = plain


def make_trainer(options: dict[str, Any]) -> Any:
    kind, config = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[options["trainer"]]
    images, tools = options.get("images", False), options.get("tools", False)
    processing = (AutoProcessor if images else AutoTokenizer).from_pretrained(options["model"], padding_side="left")
    settings = {
        "output_dir": options["output"],
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.1,
        "vllm_max_model_length": 256,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 48,
        "max_steps": 8,
        "use_cpu": True,
        "bf16": False,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "beta": 0.0,
        **options.get("settings", {}),
    }
    if tools:
        processing.response_template = {}  # replaced by `call_once`
        grpo.parse_response = call_once(processing)
    trainer = kind(
        model=options["model"],
        processing_class=processing,
        args=config(**settings),
        train_dataset=Dataset.from_list([row(n, chat=images or tools, image=images) for n in range(64)]),
        reward_funcs=[reward],
        **({"tools": [add]} if tools else {}),
    )
    if tools:
        trainer.vllm_generation.max_completion_length = TURN
    if options.get("collapse"):
        collapse(trainer, processing.image_token)
    return trainer


def row(number: int, *, chat: bool, image: bool) -> dict[str, Any]:
    question = f"what is {number} plus {number + 1} ?"
    if not chat:
        return {"prompt": question}
    found: dict[str, Any] = {"prompt": [{"role": "user", "content": question}]}
    if image:
        found["image"] = Image.fromarray(picture(number))
    return found


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(len(set(ids))) for ids in completion_ids]


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: one.
        b: the other.
    """
    return a + b


def call_once(tokenizer: Any) -> Callable[..., dict[str, Any]]:
    """Stands for a policy that has learnt to call tools, which a random one has not: every answer's first turn ends in
    a call."""

    def parse(_: Any, ids: list[int], prefix: list[int] | None = None, tools: Any = None) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": tokenizer.decode(ids)}
        turns = tokenizer.decode(prefix or []).count("<|im_start|>assistant")
        if turns == 1:
            message["tool_calls"] = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]
        return message

    return parse


def collapse(trainer: Any, token: str) -> None:
    """Mends what TRL hands to its own engine: one placeholder an image, which vLLM expands, and not the expanded ones,
    which vLLM expands again."""
    engine, pad = trainer.vllm_generation.llm, trainer.processing_class.tokenizer.convert_tokens_to_ids(token)
    inner = engine.generate

    def generate(prompts: list[dict[str, Any]], **settings: Any) -> Any:
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            prompt["prompt_token_ids"] = [
                token for n, token in enumerate(ids) if token != pad or n == 0 or ids[n - 1] != pad
            ]
        return inner(prompts, **settings)

    engine.generate = generate


def from_step(trainer: Any, at: int, owner: Any, name: str, broken: Callable[..., Any]) -> None:
    """From the trainer's step `at` on, call `broken` with the method that it replaces in front of the arguments."""
    inner = getattr(owner, name)

    def either(*args: Any, **kwargs: Any) -> Any:
        return broken(inner, *args, **kwargs) if trainer.state.global_step >= at else inner(*args, **kwargs)

    setattr(owner, name, either)


def stale(trainer: Any, at: int) -> None:
    """Weights no longer reach the engine."""
    from_step(trainer, at, trainer.vllm_generation, "sync_weights", lambda inner: None)


def temperature(trainer: Any, at: int) -> None:
    """The engine is told of a temperature, and the trainer is not."""

    def hotter(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        trainer.vllm_generation.generation_kwargs["temperature"] = 0.7
        return inner(*args, **kwargs)

    from_step(trainer, at, trainer.vllm_generation, "generate", hotter)


def late_mask(trainer: Any, at: int) -> None:
    """The mask of a tool's tokens begins, and ends, one token late."""

    def late(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        masks, *others = inner(*args, **kwargs)
        return ([[1, *mask[:-1]] for mask in masks], *others)

    from_step(trainer, at, trainer, "_tool_call_loop", late)


FAULTS = {"stale": stale, "temperature": temperature, "late_mask": late_mask}


if __name__ == "__main__":
    main()
