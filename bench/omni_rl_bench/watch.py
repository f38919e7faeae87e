"""Measures what a run that is watched pays: processor time of its own thread for each step that it hands over, and each
update that it announces."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch

from omni_rl.client import Client
from omni_rl.watch.table import StepValues
from omni_rl.watch.verl import VerlWatch
from omni_rl.watch.watcher import Watcher
from omni_rl_bench.coordinator import coordinator
from omni_rl_bench.result import BenchmarkError, Goal, write_result

CHECKOUT = Path(__file__).parents[2]
Hook = Literal["step", "verl"]
HOOKS: tuple[Hook, ...] = ("step", "verl")
"""The ways of handing a step over: `Watcher.step`, which copies its tensors, or verl's hook, which does not."""
FIGURES = 150
"""How many figures verl logs of a step."""
KINDS = ("watching", "announcing")
"""The work that a run's thread pays for: handing steps over, and saying what its weights are after each update."""
WARM = 2
"""How many steps of TRL's run are not counted, while everything is used for the first time."""
SHAPES = ((16, 48), (64, 1024), (256, 1024), (512, 2048))
"""The answers of a step, and the tokens of each: a test's, a small run's and a large one's."""
PROMPT = 256
"""The tokens of a prompt."""
STEPS = 20
MILLISECONDS = 2.0
SHARE = 0.02
"""The share of a step's time that its own thread may pay; it may pay `MILLISECONDS` in any case."""
TOKENS_PER_SECOND = 100_000
"""How fast one process is taken to sample, score and learn, for the share of a step's time. On the H100s that recipes
are published for, a process has a GPU, and does a tenth of that."""


def bench_watch(out: Path, *, steps: int = STEPS) -> Path:
    """Post `steps` steps of each shape to a coordinator of its own, and write `watch.json`.

    The steps are handed over by `Watcher.step`, as a hook that copies does it, and then by verl's hook: both logprobs,
    ids, masks, prompts and rewards. The last figures are of real runs of TRL with an agent in their engines, in
    everything that `watch` has wrapped. `milliseconds` are of the calling thread alone; the thread that posts has its
    own figure.

    Raises:
        BenchmarkError: the coordinator did not keep up, or the run of TRL failed: it needs a checkout.
    """
    with tempfile.TemporaryDirectory() as folder, coordinator(Path(folder)) as running:
        shapes = [_measure(running.url, steps, *shape, hook) for hook in HOOKS for shape in SHAPES]
        real = _in_runs(running.url)
    goals = [
        Goal(
            f"{s['hook']}, {s['answers']} x {s['tokens']}: main thread, share of what it may take",
            s["of_the_bar"],
            1.0,
            "lower",
        )
        for s in shapes
    ]
    goals += [
        Goal(
            f"in a TRL run, {one['model']} model: {kind}, share of what it may take",
            one[kind]["of_the_bar"],
            1.0,
            "lower",
        )
        for one in real
        for kind in KINDS
    ]
    results = {"steps": steps, "shapes": shapes, "trl": real}
    return write_result(out / "watch.json", "omni-rl bench watch", goals, results)


def _in_runs(url: str) -> list[dict[str, Any]]:
    """Run released TRL with random models on this machine, which a checkout's tests know how to start."""
    command = [sys.executable, "-m", "tests.watch.trl_costs", url]
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
    if done.returncode:
        raise BenchmarkError("a run of TRL failed; what it said is above")
    return [_of_a_run(url, name, run) for name, run in json.loads(done.stdout).items()]


def _of_a_run(url: str, name: str, run: Mapping[str, Any]) -> dict[str, Any]:
    each = run["steps"][WARM:]
    seconds = statistics.median(step["seconds"] for step in each)
    with Client(url) as client:
        told = client.updates(run["run"], 1000)
    return {
        "model": name,
        "parameters": run["parameters"],
        "steps": len(each),
        "seconds_of_a_step": round(seconds, 3),
        **{kind: _share([step[kind] for step in each], seconds) for kind in KINDS},
        "updates_announced": sum(update.engine is None for update in told),
        "updates_confirmed": sum(update.engine is not None and update.of is not None for update in told),
    }


def _share(milliseconds: Sequence[float], seconds: float) -> dict[str, float]:
    """Return what the training thread pays at a step of `seconds`: its median and worst, and the median's shares."""
    median = statistics.median(milliseconds)
    return {
        "milliseconds": round(median, 3),
        "milliseconds_worst": round(max(milliseconds), 3),
        "of_the_step": round(median / 1e3 / seconds, 4),
        "of_the_bar": round(median / max(MILLISECONDS, 1e3 * SHARE * seconds), 4),
    }


def _measure(url: str, steps: int, answers: int, tokens: int, hook: Hook) -> dict[str, Any]:
    watcher = Watcher(url=url, run=f"bench-{hook}-{answers}-{tokens}", dtype="bfloat16")
    hand_over = _step(watcher, answers, tokens) if hook == "step" else _verl(watcher, answers, tokens)
    own, clock, whole = [], [], time.process_time()
    for _ in range(steps):
        spent, began = time.thread_time(), time.perf_counter()
        hand_over()
        own.append(1e3 * (time.thread_time() - spent))
        clock.append(1e3 * (time.perf_counter() - began))
        if not watcher.flush(120):
            raise BenchmarkError("the coordinator of the benchmark does not take steps")
    behind = 1e3 * (time.process_time() - whole) - sum(own)
    watcher.close()
    if watcher.counts.sealed != steps:
        raise BenchmarkError(f"of {steps} steps {watcher.counts.sealed} were judged")
    step = 1e3 * answers * tokens / TOKENS_PER_SECOND
    median = statistics.median(own)
    return {
        "hook": hook,
        "answers": answers,
        "tokens": tokens,
        "milliseconds": round(median, 3),
        "milliseconds_worst": round(max(own), 3),
        "milliseconds_by_the_clock": round(statistics.median(clock), 3),
        "of_the_bar": round(median / max(MILLISECONDS, SHARE * step), 4),
        "milliseconds_of_the_posting_thread": round(behind / steps, 3),
    }


def _step(watcher: Watcher, answers: int, tokens: int) -> Callable[[], object]:
    """Return a call that hands over everything that TRL's hook knows of a step."""
    rollout, train, ids, prompts = _tensors(answers, tokens)
    values: StepValues = {
        "rollout_logprobs": rollout,
        "train_logprobs": train,
        "mask": torch.ones_like(ids),
        "ids": ids,
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "rollout_prompt_ids": prompts.tolist(),
        "samples": [f"{n // 8}/{n % 8}" for n in range(answers)],
        "rewards": torch.rand(answers),
        "temperature": 1.0,
        "logprobs_of": "processed",
        "rollout_version": "step-0",
        "train_version": "step-0",
        "prompt_text": ["a prompt of some words"] * answers,
    }
    return lambda: watcher.step(training={"loss": 0.5}, **values)


def _verl(watcher: Watcher, answers: int, tokens: int) -> Callable[[], object]:
    """Return a call that hands over a batch as verl's older trainer has it, which holds more than the V1 trainer's."""
    rollout, train, ids, prompts = _tensors(answers, tokens)
    batch = {
        "rollout_log_probs": rollout,
        "old_log_probs": train,
        "responses": ids,
        "response_mask": torch.ones_like(ids),
        "prompts": prompts,
        "attention_mask": torch.ones((answers, PROMPT + tokens), dtype=torch.int64),
        "rm_scores": torch.nn.functional.one_hot(torch.full((answers,), tokens - 1), tokens).float(),
    }
    data = SimpleNamespace(batch=batch, non_tensor_batch={"uid": np.array([f"{n // 8}" for n in range(answers)])})
    eyes = VerlWatch()
    eyes.watcher = watcher
    learnt = {f"actor/figure_{n}": 0.5 for n in range(FIGURES)}

    def hand_over() -> None:
        eyes.scores(0, None)
        eyes.scored(data)
        eyes.logged(learnt)

    return hand_over


def _tensors(answers: int, tokens: int) -> tuple[torch.Tensor, ...]:
    """Return both sides' logprobs, ids and prompts, as padded tensors."""
    drawn = torch.Generator().manual_seed(0)
    rollout = -0.1 - torch.rand((answers, tokens), generator=drawn)
    train = rollout + 1e-3 * torch.randn(rollout.shape, generator=drawn)
    ids, prompts = (torch.randint(0, 32_000, (answers, width), generator=drawn) for width in (tokens, PROMPT))
    return rollout, train, ids, prompts
