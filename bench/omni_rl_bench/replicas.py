"""Measures what a second replica of the rollout policy saves, and costs: the same steps sampled by one and by two."""

import os
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omni_rl.api.jobs import GrpoParameters
from omni_rl.bridge.settings import BatchSettings
from omni_rl.config import SMALL_CHECKPOINT
from omni_rl.kinds import KINDS
from omni_rl.media.types import Prompt
from omni_rl.policies.local import LocalPair, started
from omni_rl.policies.pair import Pair
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings
from omni_rl.tasks.samples import demo_prompts
from omni_rl.tasks.settings import load_task
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from omni_rl_bench.processor import processor_seconds_below
from omni_rl_bench.result import Goal, write_result

STEPS = 3
WALL, PROCESSOR = 0.75, 1.05


AT_ONCE = BatchSettings.model_fields["max_num_seqs"].default
"""How many sequences an engine of the service takes into one step."""
GROUP = GrpoParameters.model_fields["group"].default
"""The answers to a prompt."""


@dataclass(frozen=True)
class Workload:
    """Steps of `count` prompts, which `prompts` gives by count and step. Each prompt gets `copies` answers of `tokens`
    tokens."""

    prompts: Callable[[int, int], list[Prompt]]
    count: int
    copies: int
    tokens: int


def bench_replicas(out: Path, rounds: int, say: Callable[[str], None]) -> Path:
    """Sample three steps with one replica and with both, in turns, `rounds` times, and write `replicas.json`.

    Each engine has one thread. Ratios are medians of the rounds' own; processor time is that of every process of the
    pair and of this one. The engine that is not asked meanwhile is idle.
    """
    engine = EngineSettings(
        model=SMALL_CHECKPOINT,
        run=f"bench-{uuid.uuid4().hex[:8]}",
        max_num_seqs=AT_ONCE,
        max_num_batched_tokens=4096,
    )
    say("starting Ray, two vLLM engines and the trainer")
    with started(engine, TrainSettings(world_size=1), replicas=2) as pair:
        results = {name: _measured(pair, workload, rounds, say, name) for name, workload in WORKLOADS.items()}
    goals = [
        Goal(f"two replicas, {of} time of sampling {name}, of one's", results[name]["two_of_one"][of], bar, "lower")
        for name in (JOB, LONE)
        for of, bar in (("wall", WALL), ("processor", PROCESSOR))
    ]
    return write_result(out / "replicas.json", "omni-rl bench replicas", goals, results)


def _all_kinds(count: int, step: int) -> list[Prompt]:
    """Return prompts as the demo has them: as many of every kind."""
    each = -(-count // len(KINDS))
    return [prompt for kind in KINDS for prompt in demo_prompts(kind, each, step)][:count]


def _digits(count: int, step: int) -> list[Prompt]:
    return load_task("digits").prompts("train", list(range(step * count, (step + 1) * count)))


def _texts(count: int, step: int) -> list[Prompt]:
    return demo_prompts("text", count, step)


JOB = f"64 prompts of all kinds in groups of {GROUP}"
LONE = "64 prompts of all kinds, an answer each"
WORKLOADS = {
    # A job's step, with `grpo`'s own number of answers to a prompt: more answers than one engine takes at once.
    JOB: Workload(_all_kinds, 64, GROUP, 32),
    # All answers fit into one engine's step, whose cost for however few sequences two engines then pay twice.
    LONE: Workload(_all_kinds, 64, 1, 32),
    "8 digits in groups of 8, 2 tokens": Workload(_digits, 8, 8, 2),
    f"64 texts in groups of {GROUP}": Workload(_texts, 64, GROUP, 32),
    # The worst case: nothing but decoding, and few sequences.
    "64 texts, an answer each": Workload(_texts, 64, 1, 32),
}


def _measured(
    pair: LocalPair, workload: Workload, rounds: int, say: Callable[[str], None], name: str
) -> dict[str, Any]:
    steps = [workload.prompts(workload.count, step) for step in range(STEPS)]
    sides = {"one": Pair(pair.rollouts[:1], pair.trainer), "two": Pair(pair.rollouts, pair.trainer)}
    each: dict[str, dict[str, list[float]]] = {side: {"wall": [], "processor": []} for side in sides}
    for number in range(rounds + 1):
        say(f"{name}: round {number} of {rounds}")
        for side, asked in sides.items():
            wall, processor = _seconds(asked, workload, steps)
            if number:  # the first time pays for what is loaded once
                each[side]["wall"].append(wall)
                each[side]["processor"].append(processor)
    medians = {
        side: {of: statistics.median(values) for of, values in figures.items()} for side, figures in each.items()
    }
    return {
        "steps": STEPS,
        "answers_per_step": workload.count * workload.copies,
        "tokens_per_answer": workload.tokens,
        "two_of_one": {of: _ratio(each["two"][of], each["one"][of]) for of in ("wall", "processor")},
        "seconds": {side: {"median": medians[side], "each": each[side]} for side in sides},
        "load_average": os.getloadavg()[0],
    }


def _ratio(two: Sequence[float], one: Sequence[float]) -> float:
    """Return the median of the rounds' ratios: a machine that slows down between two rounds slows both sides of a
    round."""
    return statistics.median(of_two / of_one for of_two, of_one in zip(two, one, strict=True))


def _seconds(pair: Pair[TrainerGroup], workload: Workload, steps: Sequence[Sequence[Prompt]]) -> tuple[float, float]:
    """Return wall time and processor time of all steps, one after the other: rendered and sampled."""
    for engine in pair.rollouts:
        engine.between_steps(_forget)
    wall, processor = time.perf_counter(), processor_seconds_below(os.getpid())
    for step, prompts in enumerate(steps):
        rendered = pair.render(prompts)
        asked = [replace(prompt, id=f"{prompt.id}.{n}") for prompt in rendered for n in range(workload.copies)]
        pair.sample(asked, SamplingSettings(max_tokens=workload.tokens, seed=step * len(asked), ignore_eos=True))
    return time.perf_counter() - wall, processor_seconds_below(os.getpid()) - processor


def _forget(engine: Any) -> None:
    """Empty the engine's media caches, so that pictures of the round before are encoded again."""
    engine.forget_media()
