"""Dumps as NeMo RL's releases write them, line by line as its logger does: each value a slice of a batch of one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

RELEASES = ("0.2", "0.3", "0.4", "0.5", "0.6", "0.7")
WIDTH = 48


@dataclass(frozen=True)
class Answer:
    """A sequence: prompt tokens, then sampled tokens with both sides' logprobs; those at `tool` are a tool's."""

    prompt: int
    rollout: Sequence[float]
    train: Sequence[float]
    tool: Sequence[int] = ()
    reward: float = 1.0
    counted: float = 1.0
    text: str = "an answer"
    extra: dict[str, Any] = field(default_factory=dict)


def line(answer: Answer, index: int, release: str, *, dynamic: bool = False) -> str:
    """`dynamic`: as with dynamic sampling, whose rewards are those of every answer, filtered or not."""
    length = answer.prompt + len(answer.rollout)
    sampled = [0] * answer.prompt + [int(at not in answer.tool) for at in range(len(answer.rollout))]
    rollout = [0.0] * answer.prompt + [v if at not in answer.tool else 0.0 for at, v in enumerate(answer.rollout)]
    train = [-0.7] * answer.prompt + list(answer.train)
    train[0] = 0.0  # no logprob of the first token

    def padded(values: Sequence[float]) -> list[list[float]]:
        return [[*values, *[0] * (WIDTH - length)]]

    row: dict[str, Any] = {"content": [answer.text], "rewards": [answer.reward], "input_lengths": [length]}
    if dynamic and release >= "0.4":
        row |= {"filtered_rewards": [answer.reward], "rewards": [0.0]}
    row |= {"generation_logprobs": padded(rollout), "prev_logprobs": padded(train)}
    if release >= "0.6":
        row |= {
            "token_ids": padded(range(1, length + 1)),
            "token_loss_mask": padded(sampled),
            "sample_loss_mask": [answer.counted],
            "advantages": padded([0.5] * length),
        }
    return json.dumps({**row, **answer.extra, "idx": index}) + "\n"


def dump(directory: Path, step: int, answers: Sequence[Answer], release: str = "0.7", **options: bool) -> Path:
    path = directory / f"train_data_step{step}.jsonl"
    path.write_text("".join(line(answer, n, release, **options) for n, answer in enumerate(answers)))
    return path


def clean_answers(seed: int, count: int = 16, drift: float = 0.0) -> list[Answer]:
    """Answers of a policy of 32 words; the trainer's logits are off by rounding, and by `drift`."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        engine = rng.normal(0.0, 2.0, (rng.integers(12, 33), 32))
        ids = (engine + rng.gumbel(size=engine.shape)).argmax(-1)
        trainer = engine + rng.normal(0.0, 1e-7 + drift, engine.shape)
        rollout, train = (
            np.take_along_axis(x - np.log(np.exp(x).sum(-1, keepdims=True)), ids[:, None], -1)[:, 0].tolist()
            for x in (engine, trainer)
        )
        found.append(Answer(int(rng.integers(2, 9)), rollout, train, reward=float(rng.integers(2))))
    return found
