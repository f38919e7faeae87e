"""What a run that is watched pays: processor time of its own thread for each step that it hands over."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from omni_rl.bench.coordinator import coordinator
from omni_rl.bench.result import Goal, write_result
from omni_rl.watch.table import StepValues
from omni_rl.watch.watcher import Watcher

SHAPES = ((16, 48), (64, 1024), (512, 2048))
"""Answers of a step, and tokens of each: a test's, a small run's and a large one's."""
STEPS = 20
MILLISECONDS = 2.0
SHARE = 0.02
"""A step's own thread may pay so much, whichever is more."""
TOKENS_PER_SECOND = 100_000
"""As fast as one process is taken to sample, score and learn, for the share of a step's time. On the H100s that recipes
are published for, a process has a GPU, and does a tenth of that."""


def bench_watch(out: Path, *, steps: int = STEPS) -> Path:
    """Post `steps` steps of each shape to a coordinator of its own, and write `watch.json`.

    Each step has what a TRL run hands over: both logprobs, ids, masks and prompts as tensors, names, texts and rewards.
    `milliseconds` are of the calling thread alone; the thread that posts has its own figure.
    """
    with tempfile.TemporaryDirectory() as folder, coordinator(Path(folder)) as running:
        shapes = [_measure(running.url, steps, answers, tokens) for answers, tokens in SHAPES]
    goals = [
        Goal(f"{s['answers']} x {s['tokens']}: the run's thread, of what it may pay", s["of_the_bar"], 1.0, "lower")
        for s in shapes
    ]
    return write_result(out / "watch.json", "omni-rl bench watch", goals, {"steps": steps, "shapes": shapes})


def _measure(url: str, steps: int, answers: int, tokens: int) -> dict[str, Any]:
    values = _step(answers, tokens)
    watcher = Watcher(url=url, run=f"bench-{answers}-{tokens}", dtype="bfloat16")
    own, clock, whole = [], [], time.process_time()
    for _ in range(steps):
        spent, began = time.thread_time(), time.perf_counter()
        watcher.step(training={"loss": 0.5}, **values)
        own.append(1e3 * (time.thread_time() - spent))
        clock.append(1e3 * (time.perf_counter() - began))
        if not watcher.flush(120):
            raise TimeoutError("the coordinator of the benchmark does not take steps")
    behind = 1e3 * (time.process_time() - whole) - sum(own)
    watcher.close()
    step = 1e3 * answers * tokens / TOKENS_PER_SECOND
    median = statistics.median(own)
    return {
        "answers": answers,
        "tokens": tokens,
        "milliseconds": round(median, 3),
        "milliseconds_worst": round(max(own), 3),
        "milliseconds_by_the_clock": round(statistics.median(clock), 3),
        "of_the_bar": round(median / max(MILLISECONDS, SHARE * step), 4),
        "milliseconds_of_the_posting_thread": round(behind / steps, 3),
    }


def _step(answers: int, tokens: int) -> StepValues:
    drawn = torch.Generator().manual_seed(0)
    rollout = -0.1 - torch.rand((answers, tokens), generator=drawn)
    ids = torch.randint(0, 32_000, (answers, tokens), generator=drawn)
    prompts = torch.randint(0, 32_000, (answers, 256), generator=drawn)
    return {
        "rollout_logprobs": rollout,
        "train_logprobs": rollout + 1e-3 * torch.randn(rollout.shape, generator=drawn),
        "mask": torch.ones_like(ids),
        "ids": ids,
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "rollout_prompt_ids": prompts.tolist(),
        "samples": [f"{n // 8}/{n % 8}" for n in range(answers)],
        "rewards": torch.rand(answers, generator=drawn),
        "temperature": 1.0,
        "logprobs_of": "processed",
        "rollout_version": "step-0",
        "train_version": "step-0",
        "prompt_text": ["a prompt of some words"] * answers,
    }
