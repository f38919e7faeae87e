"""What a second replica of the rollout policy saves, and what it costs: the same steps sampled by one and by two."""

import os
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni_rl.bench.processor import processor_seconds_below
from omni_rl.bench.result import Goal, write_result
from omni_rl.config import SMALL_CHECKPOINT
from omni_rl.kinds import KINDS
from omni_rl.media.samples import demo_prompts
from omni_rl.media.types import Prompt, RenderedPrompt
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
GROUP = 8
"""Answers to each prompt, where there are several."""
TOKENS = 32
WALL, PROCESSOR = 0.75, 1.05
Ask = Callable[[Pair[TrainerGroup], int], None]
"""Renders and samples the prompts of a step."""


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
        results = {name: _measured(pair, ask, rounds, say, name) for name, ask in WORKLOADS.items()}
    of_all_kinds = results[ALL_KINDS]["two_of_one"]
    goals = [
        Goal("two replicas, wall time of sampling, of one's", of_all_kinds["wall"], WALL, "lower"),
        Goal("two replicas, processor time of sampling, of one's", of_all_kinds["processor"], PROCESSOR, "lower"),
    ]
    return write_result(out / "replicas.json", "omni-rl bench replicas", goals, results)


def _all_kinds(pair: Pair[TrainerGroup], step: int) -> None:
    """As the demo has them: as many prompts of every kind, one answer each."""
    each = -(-ANSWERS // len(KINDS))
    prompts = [prompt for kind in KINDS for prompt in demo_prompts(kind, each, step)][:ANSWERS]
    _sample(pair, pair.render(prompts), step)


def _groups(pair: Pair[TrainerGroup], step: int) -> None:
    """As GRPO has them: digits, several answers to each."""
    count = ANSWERS // GROUP
    rendered = pair.render(_digits(list(range(step * count, (step + 1) * count))))
    _sample(pair, [replace(prompt, id=f"{prompt.id}.{copy}") for prompt in rendered for copy in range(GROUP)], step)


def _digits(numbers: list[int]) -> list[Prompt]:
    return load_task("digits").prompts("train", numbers)


def _sample(pair: Pair[TrainerGroup], prompts: Sequence[RenderedPrompt], step: int) -> None:
    pair.sample(prompts, SamplingSettings(max_tokens=TOKENS, seed=step * ANSWERS, ignore_eos=True))


ALL_KINDS = "all kinds of prompt, one answer each"
WORKLOADS: dict[str, Ask] = {ALL_KINDS: _all_kinds, f"digits, {GROUP} answers each": _groups}


def _measured(pair: LocalPair, ask: Ask, rounds: int, say: Callable[[str], None], name: str) -> dict[str, Any]:
    sides = {"one": Pair(pair.rollouts[:1], pair.trainer), "two": Pair(pair.rollouts, pair.trainer)}
    each: dict[str, dict[str, list[float]]] = {side: {"wall": [], "processor": []} for side in sides}
    for number in range(rounds + 1):
        say(f"{name}: round {number} of {rounds}")
        for side, asked in sides.items():
            wall, processor = _seconds(asked, ask)
            if number:  # the first time pays for what is loaded once
                each[side]["wall"].append(wall)
                each[side]["processor"].append(processor)
    medians = {
        side: {of: statistics.median(values) for of, values in figures.items()} for side, figures in each.items()
    }
    return {
        "steps": STEPS,
        "answers_per_step": ANSWERS,
        "tokens_per_answer": TOKENS,
        "two_of_one": {of: medians["two"][of] / medians["one"][of] for of in ("wall", "processor")},
        "seconds": {side: {"median": medians[side], "each": each[side]} for side in sides},
        "load_average": os.getloadavg()[0],
    }


def _seconds(pair: Pair[TrainerGroup], ask: Ask) -> tuple[float, float]:
    """Wall time and processor time of all steps, one after the other."""
    for engine in pair.rollouts:
        engine.between_steps(_forget)
    wall, processor = time.perf_counter(), processor_seconds_below(os.getpid())
    for step in range(STEPS):
        ask(pair, step)
    return time.perf_counter() - wall, processor_seconds_below(os.getpid()) - processor


def _forget(engine: Any) -> None:
    """Pictures of the round before are encoded again."""
    engine.forget_media()
