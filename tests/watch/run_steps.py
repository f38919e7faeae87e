"""Steps of a run with two data-parallel ranks, well and with faults. Shapes: B answers of up to T tokens."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_rl.client import Client
from omni_rl.errors import NotFoundError
from tests.cases.world import World

ANSWERS, TOKENS, IDS = 32, 192, 256
FROM = 3
"""The step, from 0, at which a fault begins."""
FAULTS = {
    "none": (None, None),
    "stale_weights": ("unknown", "stale_weights"),
    "old_version": ("stale_weights", "stale_weights"),
    "temperature": ("logprob_postprocessing", "logprob_postprocessing"),
    "late_mask": ("loss_mask", "loss_mask"),
    "nan": ("nonfinite_logprobs", "nonfinite_logprobs"),
}
"""Causes of the step at which a fault is first over the limits, and of the last step: that the engine keeps its first
weights shows in how the difference grows, where no version says so."""


@dataclass
class Step:
    """Answers of their own lengths: float32 logprobs, the mask of the policy's own tokens, and ids."""

    rollout: list[NDArray[np.float32]]
    train: list[NDArray[np.float32]]
    mask: list[NDArray[np.int64]]
    ids: list[NDArray[np.int64]]
    behind: int = 0
    """How many versions the weights that sampled say that they are behind."""


def steps(fault: str, count: int) -> Iterator[Step]:
    """Each step under weights of its own. Every answer has a tool's tokens in its middle, whose rollout logprobs
    frameworks fill with 0.0."""
    for number in range(count):
        world = World(100 + number, ANSWERS, TOKENS, IDS)
        wrong = fault if number >= FROM else "none"
        engine = world.engine(world.logits)
        if wrong == "stale_weights":
            # The trainer moves a little further from the engine's first weights with every update.
            engine = engine + world.rng.standard_normal(engine.shape, dtype=np.float32) * np.float32(0.1 * (number - 1))
        if wrong == "old_version":
            engine = engine + world.rng.standard_normal(engine.shape, dtype=np.float32) * np.float32(0.2)
        if wrong == "temperature":
            engine = engine / np.float32(0.7)
        ids = world.sample(engine)
        rollout, train = world.logprobs(engine, ids), world.logprobs(world.logits, ids)
        yield _step(world, wrong, rollout, train, ids)


def _step(world: World, wrong: str, rollout: Any, train: Any, ids: Any) -> Step:
    rows = []
    for n, length in enumerate(world.rng.integers(TOKENS // 2, TOKENS + 1, ANSWERS)):
        tool = slice(length // 3, length // 3 + 12)
        mask = np.ones(length, np.int64)
        mask[tool] = 0
        lr, lt = (values[n, :length].astype(np.float32) for values in (rollout, train))
        lr[tool] = 0.0
        lt[tool] = world.rng.uniform(-9.0, -2.0, 12)  # nobody sampled them
        if wrong == "late_mask":
            mask = np.roll(mask, 1)
        rows.append((lr, lt, mask, ids[n, :length].astype(np.int64)))
    if wrong == "nan":
        rows[5][1][2] = np.nan
    rollouts, trains, masks, answers = (list(column) for column in zip(*rows, strict=True))
    return Step(rollouts, trains, masks, answers, 2 if wrong == "old_version" else 0)


def await_verdict(run: str, step: int) -> None:
    """Wait until a step is judged, as the rest of a real step takes longer than that."""
    deadline = time.monotonic() + 120
    with Client() as client:
        while True:
            try:
                if client.steps(run, after=step - 1):
                    return
            except NotFoundError:
                pass  # its first part is still on its way
            assert time.monotonic() < deadline, f"step {step} is not judged"
            time.sleep(0.02)
