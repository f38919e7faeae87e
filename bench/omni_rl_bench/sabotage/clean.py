"""Posts steps of runs in which nothing is broken, through the service: every alarm is a false one."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from omni_rl.jobs.clock import Clock
from omni_rl.jobs.staleness import score_by_span
from omni_rl.rollout.types import SamplingSettings
from omni_rl_bench.sabotage.records import Record as Posted
from omni_rl_bench.sabotage.records import posted, with_tools
from omni_rl_bench.sabotage.rig import Pair, Rig, Say, Step, prompts_of
from omni_rl_bench.sabotage.suite import Record

BLOCK = 25
"""The steps of one run, and of one line of the record."""
UPDATE = 5
"""How many steps lie between two updates of a run that is not asynchronous."""
LEARNING_RATE = 1e-3
"""The demo's learning rate."""


@dataclass(frozen=True)
class Shape:
    """How a clean run looks. `lag` is how many updates answers are older than the trainer, which scores them by the
    weights that sampled them. `dropped` is the share of a step's answers that never comes."""

    name: str
    per_kind: int = 2
    tokens: int = 16
    temperature: float = 1.0
    masks: str = "none"
    lag: int = 0
    dropped: float = 0.0


SHAPES = (
    Shape("short answers", tokens=4),
    Shape("long answers", per_kind=1, tokens=96),
    Shape("a tool's tokens masked", masks="tools"),
    Shape("random tokens masked", masks="random"),
    Shape("asynchronous", lag=1),
    Shape("answers dropped", dropped=0.5),
    Shape("temperature 0.7", temperature=0.7),
    Shape("five answers", per_kind=1),
)


def clean(pair: Pair, steps: int, first_seed: int, record: Record, say: Say) -> None:
    """Post clean steps until the record has `steps` of them, in blocks of every shape in turn."""
    blocks = [block for block in record.lines("clean") if block["pair"] == str(pair)]
    done = sum(block["steps"] for block in blocks)
    if done >= steps:
        return
    say(f"{pair}: clean steps, {done} of {steps} are done")
    with Rig(pair, say, learning_rate=LEARNING_RATE) as rig:
        number = len(blocks)
        while done < steps:
            block = _Block(rig, SHAPES[number % len(SHAPES)], first_seed + number).run(min(BLOCK, steps - done))
            record.add({"kind": "clean", "pair": str(pair), "seed": first_seed + number, **block})
            done, number = done + block["steps"], number + 1
            say(f"{pair}: {done} clean steps, {block['shape']}: {block['alarms']} false alarms {block['reasons']}")


class _Block:
    def __init__(self, rig: Rig, shape: Shape, seed: int) -> None:
        self._rig, self._shape, self._seed = rig, shape, seed
        self._rng = np.random.default_rng(seed)
        self._seconds = Counter[str]()

    def run(self, steps: int) -> dict[str, Any]:
        rig, shape = self._rig, self._shape
        run = f"clean-{rig.pair.numerics}-{rig.pair.dtype}-{self._seed}".replace("_", "-")
        rig.begin(run, prompts_of(self._seed, shape.per_kind), lag=shape.lag or None)
        if shape.masks == "tools":
            posted(partial(with_tools, 0), rig, self._seed)
        elif shape.masks == "random":
            posted(self._masked, rig, self._seed)
        try:
            found = [self._step(number) for number in range(steps)]
        finally:
            rig.take_out()
            rig.policies.trainer.drop_snapshot(None)
        drift = rig.client.run(run).drift
        alarms = [step for step in found if not step.calm]
        return {
            "shape": shape.name,
            "steps": steps,
            "tokens": sum(step.verdict.tokens for step in found),
            "alarms": len(alarms),
            "paused": int(drift.gate != "open" or drift.severity != "ok"),
            "unjudged": sum(step.verdict.severity == "unjudged" for step in found),
            "worst_abs_diff_mean": max(
                step.verdict.figures["overall"]["logprob_abs_diff_mean"] or 0.0 for step in found
            ),
            "reasons": [f"{step.verdict.reason}: {step.verdict.sentence}"[:300] for step in alarms][:5],
            "seconds_by_part": dict(self._seconds),
        }

    def _step(self, number: int) -> Step:
        rig, shape, clock = self._rig, self._shape, Clock()
        seed = self._seed * 10_000 + number * len(rig.prompts)
        sampling = SamplingSettings(
            max_tokens=shape.tokens, temperature=shape.temperature, seed=seed, ignore_eos=shape.lag == 0
        )
        if shape.lag:
            rig.policies.trainer.take_snapshot(str(rig.policies.trainer.version()))
        with clock.time("sample"):
            rollouts = rig.sample(sampling)
        if shape.lag:
            rig.learn(rollouts, seed)
            rig.sync()
        with clock.time("score"):
            scores = score_by_span(rollouts, rig.policies.score) if shape.lag else rig.policies.score(rollouts)
        kept = [n for n in range(len(rollouts)) if self._rng.random() >= shape.dropped] or [0]
        with clock.time("judge"):
            verdict = rig.judge(number, [rollouts[n] for n in kept], [scores[n] for n in kept], kept)
        self._seconds.update(clock.seconds)
        if not shape.lag and number % UPDATE == UPDATE - 1:
            rig.learn(rollouts, seed)
            rig.sync()
        return Step(number, rollouts, scores, verdict)

    def _masked(self, records: list[Posted]) -> None:
        for record in records:
            mask = self._rng.random(len(record["ids"])) < 0.6
            mask[0] = True
            record["loss_mask"] = mask
