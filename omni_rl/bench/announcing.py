"""What a TRL run pays for announcing its updates: processor time of its own thread, beside that of the whole step.

Both by the thread's own clock: what else runs on the machine makes neither longer."""

import functools
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omni_rl.bench.coordinator import coordinator
from omni_rl.bench.result import Goal, write_result
from omni_rl.config import SMALL_CHECKPOINT
from omni_rl.errors import NotInstalledError

SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8},
}
"""Qwen2 over the small checkpoint's vocabulary: the one of the tests, and one with more to hash."""
STEPS = 12
WARM = 2
"""Steps before those that count: kernels are compiled in the first."""
MILLISECONDS = 2.0
SHARE = 0.02
"""A step's own thread may pay so much, whichever is more."""


def bench_announcing(out: Path, *, steps: int = STEPS) -> Path:
    """Run GRPO with vLLM beside it for each size of model, and write `announcing.json`.

    Raises:
        NotInstalledError: this Python has no TRL.
    """
    if importlib.util.find_spec("trl") is None:
        raise NotInstalledError("TRL is not here; run this by the Python that `python tools/frameworks.py trl` prints")
    with tempfile.TemporaryDirectory() as folder, coordinator(Path(folder)) as running:
        found = [_measure(Path(folder), running.url, name, steps) for name in SIZES]
    goals = [
        Goal(f"{one['model']}: announcing an update, of what it may cost", one["of_the_bar"], 1.0, "lower")
        for one in found
    ]
    return write_result(out / "announcing.json", "omni-rl bench announcing", goals, {"steps": steps, "models": found})


def _measure(folder: Path, url: str, name: str, steps: int) -> dict[str, Any]:
    from omni_rl.api.runs import RunBody
    from omni_rl.client import Client

    run = f"bench-{name}"
    os.environ |= {"OMNI_RL_AGENT": url, "OMNI_RL_URL": url, "OMNI_RL_RUN": run}
    with Client(url) as client:
        client.create_run(RunBody(run=run, model="qwen2", dtype="float32", framework="trl"))
        parameters = _write(folder / run, SIZES[name])
        own, seconds = _train(folder / run, folder / f"{run}-out", steps + WARM)
        told = client.updates(run, 1000)
    own, seconds = own[WARM:], seconds[WARM:]
    step = statistics.median(seconds)
    paid = 1e3 * statistics.median(own)
    return {
        "model": name,
        "parameters": parameters,
        "step_milliseconds": round(1e3 * step, 1),
        "milliseconds": round(paid, 3),
        "milliseconds_worst": round(1e3 * max(own), 3),
        "share_of_the_step": round(paid / (1e3 * step), 5),
        "of_the_bar": round(paid / max(MILLISECONDS, 1e3 * SHARE * step), 4),
        "updates_announced": sum(one.engine is None for one in told),
        "updates_confirmed": sum(one.engine is not None and one.of is not None for one in told),
    }


def _write(directory: Path, sizes: Mapping[str, int]) -> int:
    """A random model with its tokenizer; returns how many parameters it has."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = PreTrainedTokenizerFast.from_pretrained(SMALL_CHECKPOINT)
    tokenizer.add_special_tokens({"pad_token": "<unk>"})
    vocabulary = len(tokenizer) + -len(tokenizer) % 64
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sizes,
        )
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return int(model.num_parameters())


def _train(model: Path, output: Path, steps: int) -> tuple[list[float], list[float]]:
    """Of each step: seconds of this thread that its announcement took, and that all of it took."""
    import trl.generation.vllm_generation as colocated
    import vllm
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from omni_rl.agent.install import flush
    from omni_rl.watch.trl import watch
    from omni_rl.watch.updates import Announcer

    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.thread_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.thread_time() - self.began)

    _keep_plain_linears()
    colocated.LLM = functools.partial(vllm.LLM, enforce_eager=True, dtype="float32", kv_cache_memory_bytes=1 << 27)
    config = GRPOConfig(
        output_dir=str(output),
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=128,
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=32,
        max_steps=steps,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    trainer = GRPOTrainer(
        model=str(model),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": f"what is {n} plus {n + 1} ?"} for n in range(64)]),
        reward_funcs=[lambda completion_ids, **_: [float(len(set(ids))) for ids in completion_ids]],
        callbacks=[Clock()],
    )
    with _timed(Announcer) as own:
        watch(trainer)
        trainer.train()
    if not flush(60):
        raise TimeoutError("the coordinator of the benchmark does not take updates")
    return own, seconds


def _keep_plain_linears() -> None:
    """vLLM packs the weights of linears on a CPU, where nothing could be loaded into them again."""
    import torch
    from vllm.model_executor.layers import linear, utils, vocab_parallel_embedding

    def plain(layer: Any, remove_weight: bool = False, **_: Any) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    for module in (utils, linear, vocab_parallel_embedding):
        if hasattr(module, "dispatch_cpu_unquantized_gemm"):
            module.dispatch_cpu_unquantized_gemm = plain


@contextmanager
def _timed(owner: Any) -> Iterator[list[float]]:
    """Seconds of the calling thread that each `announce` takes."""
    announce: Callable[..., None] = owner.announce
    spent: list[float] = []

    def timed(self: Any, number: int, weights: Any, at: float | None = None) -> None:
        began = time.thread_time()
        announce(self, number, weights, at)
        spent.append(time.thread_time() - began)

    owner.announce = timed
    try:
        yield spent
    finally:
        owner.announce = announce
