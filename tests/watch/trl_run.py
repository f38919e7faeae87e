"""A real TRL run on the CPU, as a user writes it: `watch(trainer)`, then `trainer.train()`.

Run by the interpreter of TRL's own environment (tools/frameworks.py), in one process or under torch.distributed.run:
    python tests/watch/trl_run.py '{"model": DIRECTORY, "fault": "stale"}'
Prints one line of JSON at the end, from the first process: the trainer's own log.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ |= {
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

import torch

torch.set_num_threads(1)

import trl.generation.vllm_generation as colocated
import vllm
import vllm.model_executor.layers.linear as linear
import vllm.model_executor.layers.utils as utils
import vllm.model_executor.layers.vocab_parallel_embedding as embedding
from datasets import Dataset
from transformers import AutoProcessor, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from omni_rl.watch.trl import watch


def main() -> None:
    options: dict[str, Any] = {"dtype": "float32", "steps": 8, "fault": None, "trainer": "grpo", **json.loads(sys.argv[1])}
    plain_linears()
    # TRL passes no dtype to its engine, which then takes the checkpoint's.
    colocated.LLM = lambda **settings: vllm.LLM(
        enforce_eager=True, dtype=options["dtype"], skip_mm_profiling=True, **settings
    )
    trainer = make_trainer(options)
    watch(trainer, **options.get("watch", {}))
    if (fault := options["fault"]) is not None:
        at = options.get("at", 3)
        FAULTS[fault](trainer, at)
    trainer.train()
    if trainer.accelerator.is_main_process:
        print("LOG", json.dumps(trainer.state.log_history))


def plain_linears() -> None:
    """Without packing, so that weights that are loaded in place reach what computes, as they do on a GPU."""

    def plain(layer: Any, remove_weight: bool = False, **_: Any) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    for module in (utils, linear, embedding):
        if hasattr(module, "dispatch_cpu_unquantized_gemm"):
            module.dispatch_cpu_unquantized_gemm = plain


def make_trainer(options: dict[str, Any]) -> Any:
    kind, config = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[options["trainer"]]
    processing = (AutoProcessor if options.get("images") else AutoTokenizer).from_pretrained(options["model"])
    settings = {
        "output_dir": options["output"],
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.1,
        "vllm_max_model_length": 256,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 48,
        "max_steps": options["steps"],
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
    rows = [{"prompt": f"what is {n} plus {n + 1} ?"} for n in range(64)]
    return kind(
        model=options["model"],
        processing_class=processing,
        args=config(**settings),
        train_dataset=Dataset.from_list(rows),
        reward_funcs=[lambda completions, **_: [float(len(set(answer))) for answer in completions]],
    )


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


FAULTS = {"stale": stale, "temperature": temperature}


if __name__ == "__main__":
    main()
