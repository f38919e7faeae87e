"""Steps of a run that is well, and what a coordinator has of them."""

from typing import Any

import numpy as np

from omni_rl.client import Client
from omni_rl.watch.watcher import Watcher


def step_of(seed: int, answers: int = 16, tokens: int = 32, drift: float = 0.0) -> dict[str, Any]:
    """A step's values for `Watcher.step`, padded [answers, tokens]: both sides' logprobs of tokens that the engine's
    policy sampled, the trainer's logits off by noise of size `drift` in float32's order or more."""
    rng = np.random.default_rng(seed)
    engine = rng.normal(0.0, 2.0, (answers, tokens, 32))
    ids = (engine + rng.gumbel(size=engine.shape)).argmax(-1)
    trainer = engine + rng.normal(0.0, 1e-7 + drift, engine.shape)
    rollout, train = (
        np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), ids[..., None], -1)[..., 0]
        for logits in (engine, trainer)
    )
    mask = np.arange(tokens) < rng.integers(tokens // 2, tokens + 1, (answers, 1))
    groups = np.arange(answers) // 4
    return {"rollout_logprobs": rollout, "train_logprobs": train, "mask": mask, "ids": ids, "groups": groups}


def sealed_steps(url: str, watcher: Watcher, attempt: int = 1) -> list[int]:
    """The steps that the coordinator has sealed, in order."""
    with Client(url) as client:
        return [line.step for line in client.steps(watcher.run, attempt=attempt)]
