"""What a second replica of the rollout policy saves, and what it costs: the same steps sampled by one and by two."""

import os
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omni_rl.bench.processor import processor_seconds_below
from omni_rl.bench.result import Goal, write_result
from omni_rl.config import SMALL_CHECKPOINT
from omni_rl.kinds import KINDS
from omni_rl.media.samples import demo_prompts
from omni_rl.media.types import Prompt
from omni_rl.policies.local import LocalPair, started
from omni_rl.policies.pair import Pair
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings
from omni_rl.tasks.settings import load_task
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings

STEPS = 3
ANSWERS = 64
"""A step's."""
WALL, PROCESSOR = 0.75, 1.05


@dataclass(frozen=True)
class Workload:
    """Steps of `ANSWERS` answers: `prompts` gives so many of a step, each is answered `copies` times, in `tokens`."""

    prompts: Callable[[int, int], list[Prompt]]
    copies: int
    tokens: int


def bench_replicas(out: Path, rounds: int, say: Callable[[str], None]) -> Path:
    """Sample three steps with one replica and with both, in turns, `rounds` times, and write `replicas.json`.

    Each engine has one thread. Figures are medians; processor time is that of every process of the pair and of this
    one. The engine that is not asked meanwhile is idle.
    """
    engine = EngineSettings(
        model=SMALL_CHECKPOINT,
        run=f"bench-{uuid.uuid4().hex[:8]}",
        max_num_seqs=ANSWERS,
        max_num_batched_tokens=4096,
    )
    say("starting Ray, two vLLM engines and the trainer")
    with started(engine, TrainSettings(world_size=1), replicas=2) as pair:
        results = {name: _measured(pair, workload, rounds, say, name) for name, workload in WORKLOADS.items()}
    of_all_kinds = results[ALL_KINDS]["two_of_one"]
    goals = [
        Goal("two replicas, wall time of sampling, of one's", of_all_kinds["wall"], WALL, "lower"),
        Goal("two replicas, processor time of sampling, of one's", of_all_kinds["processor"], PROCESSOR, "lower"),
    ]
    return write_result(out / "replicas.json", "omni-rl bench replicas", goals, results)


def _all_kinds(count: int, step: int) -> list[Prompt]:
    """As the demo has them: as many of every kind."""
    each = -(-count // len(KINDS))
    return [prompt for kind in KINDS for prompt in demo_prompts(kind, each, step)][:count]


def _digits(count: int, step: int) -> list[Prompt]:
    return load_task("digits").prompts("train", list(range(step * count, (step + 1) * count)))


def _texts(count: int, step: int) -> list[Prompt]:
    return demo_prompts("text", count, step)


ALL_KINDS = "all kinds of prompt, 32 tokens"
WORKLOADS = {
    ALL_KINDS: Workload(_all_kinds, 1, 32),
    "digits, groups of 8, 2 tokens": Workload(_digits, 8, 2),
    # Nothing but decoding, where what a step of an engine costs for however few sequences is spent twice.
    "text, 32 tokens": Workload(_texts, 1, 32),
}


def _measured(
    pair: LocalPair, workload: Workload, rounds: int, say: Callable[[str], None], name: str
) -> dict[str, Any]:
    steps = [workload.prompts(ANSWERS // workload.copies, step) for step in range(STEPS)]
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
        "answers_per_step": ANSWERS,
        "tokens_per_answer": workload.tokens,
        "two_of_one": {of: medians["two"][of] / medians["one"][of] for of in ("wall", "processor")},
        "seconds": {side: {"median": medians[side], "each": each[side]} for side in sides},
        "load_average": os.getloadavg()[0],
    }


def _seconds(pair: Pair[TrainerGroup], workload: Workload, steps: Sequence[Sequence[Prompt]]) -> tuple[float, float]:
    """Wall time and processor time of all steps, one after the other: rendered and sampled."""
    for engine in pair.rollouts:
        engine.between_steps(_forget)
    wall, processor = time.perf_counter(), processor_seconds_below(os.getpid())
    for step, prompts in enumerate(steps):
        rendered = pair.render(prompts)
        asked = [replace(prompt, id=f"{prompt.id}.{n}") for prompt in rendered for n in range(workload.copies)]
        pair.sample(asked, SamplingSettings(max_tokens=workload.tokens, seed=step * ANSWERS, ignore_eos=True))
    return time.perf_counter() - wall, processor_seconds_below(os.getpid()) - processor


def _forget(engine: Any) -> None:
    """Pictures of the round before are encoded again."""
    engine.forget_media()
